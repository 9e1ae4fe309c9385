"""What is measured on one GPU; each scenario gives figures and what is wrong with them."""

import asyncio
import time
from itertools import pairwise
from typing import Any

from serve_app.calibrate.engine_run import run_engine
from serve_app.calibrate.measure import memory_of
from serve_app.domain.units import MIB
from serve_app.planning.measured import measured_parts
from tests.gpu.engines import EngineProcess, Stage, running, wait_until
from tests.gpu.load import Answer, steady_load, summary
from tests.gpu.machine import Machine, family, replicas

Figures = dict[str, Any]

RETURN_S = 60.0
RETURN_SLACK_BYTES = 64 * MIB
"""A driver keeps a little of what a dead process had."""


def planned_against_measured(machine: Machine) -> tuple[Figures, list[str]]:
    """Each variant's engine alone: what was planned, and what its processes hold."""
    rows, wrong = [], []
    for variant in family(machine, eager=False):
        run = run_engine(variant.folder, variant.settings, [machine.device])
        held, need = run.held_bytes[machine.device.key], variant.plan.need_bytes
        row: Figures = {
            "variant": variant.name,
            "planned_bytes": need,
            "held_bytes": held,
            "held_of_planned": round(held / need, 4),
        }
        if machine.is_gpu:
            parts = variant.plan.footprint
            measured = measured_parts(memory_of(run.ranks[0], run.held_bytes))
            for name in ("weights", "activation", "cuda_graphs", "context"):
                row[name] = {
                    "planned_bytes": getattr(parts, name).bytes,
                    "measured_bytes": getattr(measured, f"{name}_bytes"),
                }
            row["kv_cache"] = {
                "planned_bytes": variant.plan.kv_cache_bytes,
                "measured_bytes": run.ranks[0]["kv_cache_bytes"],
            }
        rows.append(row)
        if held > need:
            wrong.append(f"{variant.name} holds {held} bytes and {need} were planned")
    return {"variants": rows}, wrong


def started_together(
    stage: Stage, n_engines: int, rounds: int, budget_s: float
) -> tuple[Figures, list[str]]:
    """Engines started at once through the gate, killed at once, and again."""
    machine = stage.machine
    deadline_s = time.monotonic() + budget_s
    variants = replicas(family(machine, eager=True), n_engines)
    all_rounds: list[Figures] = []
    wrong = []
    for number in range(1, rounds + 1):
        if time.monotonic() > deadline_s:
            wrong.append(f"{number - 1} of {rounds} rounds within {budget_s:g} s")
            break
        free_before = machine.device.free_bytes()
        start_s = time.monotonic()
        with running(variants, stage) as engines:
            took_s = time.monotonic() - start_s
            spans = _spans(engines)
            held = machine.device.used_by([pid for engine in engines for pid in engine.pids()])
            free_together = machine.device.free_bytes()
            for engine in engines:
                engine.kill()
            gone = lambda engines=engines: all(engine.all_gone() for engine in engines)  # noqa: E731
            wait_until(gone, RETURN_S, "every process of the killed engines ends")
        returned_s = _wait_until_free(machine, free_before - RETURN_SLACK_BYTES)
        overlaps = sum(later[0] < earlier[1] for earlier, later in pairwise(spans))
        planned = sum(variant.plan.need_bytes for variant in variants)
        taken = free_before - free_together if held is None else held
        all_rounds.append(
            {
                "all_ready_s": round(took_s, 2),
                "turns_s": [round(end - start, 2) for start, end in spans],
                "overlapping_turns": overlaps,
                "planned_bytes": planned,
                "held_bytes": taken,
                "memory_returned_s": returned_s,
            }
        )
        wrong += [f"round {number}: {overlaps} starts overlap"] if overlaps else []
        wrong += [f"round {number}: holds {taken} of {planned}"] if taken > planned else []
    return {"engines": n_engines, "rounds": all_rounds}, wrong


def _spans(engines: list[EngineProcess]) -> list[tuple[float, float]]:
    """(turn taken, ready), in the order of the turns."""
    spans = []
    for engine in engines:
        turn_s, ready_s = engine.when("turn"), engine.when("ready")
        assert turn_s is not None and ready_s is not None
        spans.append((turn_s, ready_s))
    return sorted(spans)


def _wait_until_free(machine: Machine, n_bytes: int) -> float | None:
    """Seconds until so much is free; None for host memory, where caches come and go."""
    if not machine.is_gpu:
        return None
    what = f"{n_bytes} bytes are free again"
    return round(wait_until(lambda: machine.device.free_bytes() >= n_bytes, RETURN_S, what), 2)


def neighbour_killed(stage: Stage, n_engines: int, phase_s: float) -> tuple[Figures, list[str]]:
    """The neighbours' latency before, while and after one engine is killed and started again."""
    *neighbours, victim = replicas(family(stage.machine, eager=False), n_engines)
    with running(neighbours, stage) as engines:
        free_before = stage.machine.device.free_bytes()
        with running([victim], stage) as (first,):
            taken = free_before - stage.machine.device.free_bytes()
            targets = {engine.variant.name: engine.base_url for engine in engines}
            answers, marks = asyncio.run(_kill_and_restart(stage, first, taken, targets, phase_s))
    phases = {
        "before": [a for a in answers if a.start_s < marks["killed"]],
        "restart": [a for a in answers if marks["killed"] <= a.start_s < marks["ready"]],
        "after": [a for a in answers if a.start_s >= marks["ready"]],
    }
    wrong = [f"neighbour {a.engine}: {a.error}" for a in answers if a.error]
    wrong += [f"no requests in phase {name}" for name, those in phases.items() if not those]
    figures = {
        "engines": n_engines,
        "processes_gone_s": round(marks["gone"] - marks["killed"], 2),
        "memory_returned_s": marks["returned_after_s"],
        "back_s": round(marks["ready"] - marks["killed"], 2),
        "neighbours": {name: summary(those) for name, those in phases.items()},
    }
    return figures, wrong


async def _kill_and_restart(
    stage: Stage,
    victim: EngineProcess,
    taken_at_start: int,
    targets: dict[str, str],
    phase_s: float,
) -> tuple[list[Answer], dict[str, Any]]:
    """The neighbours' answers, and the monotonic seconds of what happened to the victim.

    The restarted engine serves for one more phase.
    """
    over = asyncio.Event()
    device = stage.machine.device
    rate = 4.0 if stage.machine.is_gpu else 0.5
    loading = asyncio.create_task(steady_load(targets, rate, over))
    marks: dict[str, Any] = {}

    def restart() -> None:
        held = device.used_by(victim.pids())
        expected = device.free_bytes() + (taken_at_start if held is None else held)
        victim.kill()
        marks["killed"] = time.monotonic()
        wait_until(victim.all_gone, RETURN_S, "the killed engine's processes end")
        marks["gone"] = time.monotonic()
        marks["returned_after_s"] = _wait_until_free(stage.machine, expected - RETURN_SLACK_BYTES)
        with running([victim.variant], stage):
            marks["ready"] = time.monotonic()
            time.sleep(phase_s)

    try:
        await asyncio.sleep(phase_s)
        await asyncio.to_thread(restart)
    finally:
        over.set()
        answers = await loading
    return answers, marks
