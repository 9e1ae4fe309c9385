"""All scenarios in one command: `python -m tests.gpu.run --device gpu --out figures.json`.

Needs no pytest and no network. Writes the figures as JSON and prints a table; exit code 1 if any
of them is wrong.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from serve_app.config.calibration import installed_vllm
from serve_app.domain.units import format_bytes
from tests.gpu.engines import ROOT, open_stage
from tests.gpu.formats import formats_without_cpu_kernel, require_made
from tests.gpu.machine import Machine, find_machine
from tests.gpu.scenarios import (
    Figures,
    neighbour_killed,
    planned_against_measured,
    started_together,
)

PREFIX = "QUANTILE_GPU_TESTS_"


@dataclass(frozen=True)
class Options:
    """How much is done; each is also an environment variable, `QUANTILE_GPU_TESTS_<NAME>`."""

    device: str = "gpu"
    engines: int = 3
    rounds: int = 20
    phase_s: float = 10.0
    budget_s: float = 570.0
    """For everything; the rounds get what is left."""
    out: str = str(ROOT / "reports" / "gpu.json")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Options":
        given = {
            field.name: type(field.default)(environ[name])
            for field in fields(cls)
            if (name := PREFIX + field.name.upper()) in environ
        }
        return cls(**given)


class Report:
    """Figures of the scenarios that ran, in one file."""

    def __init__(self, options: Options, machine: Machine) -> None:
        self._out = Path(options.out)
        self._deadline_s = time.monotonic() + options.budget_s
        self.content: dict[str, Any] = {
            "device": machine.kind,
            "gpu": machine.gpu.name,
            "in_catalogue": machine.known,
            "vllm": installed_vllm(),
            "options": asdict(options),
        }

    def left_s(self) -> float:
        """What is left of the budget."""
        return self._deadline_s - time.monotonic()

    def run(self, name: str, scenario: Callable[[], tuple[Figures, list[str]]]) -> list[str]:
        """Add the scenario's figures; gives what is wrong with them."""
        start_s = time.monotonic()
        figures, wrong = scenario()
        figures |= {"wall_s": round(time.monotonic() - start_s, 1), "wrong": wrong}
        self.content[name] = figures
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(self.content, indent=2))
        print(f"\n{name} ({figures['wall_s']} s)\n{table(name, figures)}", flush=True)
        return wrong


def table(name: str, figures: Figures) -> str:
    """What a person reads of it."""
    return "\n".join(_TABLES[name](figures))


def _planned(figures: Figures) -> list[str]:
    lines = []
    for row in figures["variants"]:
        share = f"{row['held_of_planned']:.1%}"
        lines.append(
            f"  {row['variant']:10} planned {format_bytes(row['planned_bytes']):>9}  "
            f"held {format_bytes(row['held_bytes']):>9}  {share:>6}"
        )
        for part in ("weights", "activation", "cuda_graphs", "context", "kv_cache"):
            if part in row:
                planned, measured = row[part]["planned_bytes"], row[part]["measured_bytes"]
                lines.append(
                    f"    {part:12} planned {format_bytes(planned):>9}  "
                    f"held {format_bytes(measured):>9}"
                )
    return lines


def _together(figures: Figures) -> list[str]:
    return [
        f"  round {number:2}: {figures['engines']} ready in {row['all_ready_s']:6.1f} s, "
        f"{row['overlapping_turns']} overlap, held {format_bytes(row['held_bytes'])} of "
        f"{format_bytes(row['planned_bytes'])}"
        for number, row in enumerate(figures["rounds"], 1)
    ]


def _killed(figures: Figures) -> list[str]:
    lines = [
        f"  processes gone after {figures['processes_gone_s']} s, memory back after "
        f"{figures['memory_returned_s']} s, serving again after {figures['back_s']} s"
    ]
    for phase, row in figures["neighbours"].items():
        lines.append(
            f"  {phase:8} {row['requests']:4} requests, {row['failed']} failed; P50/P99 ms: "
            f"TTFT {row['ttft_p50_ms']}/{row['ttft_p99_ms']}, "
            f"gap {row['gap_p50_ms']}/{row['gap_p99_ms']}, "
            f"request {row['request_p50_ms']}/{row['request_p99_ms']}"
        )
    return lines


def _formats(figures: Figures) -> list[str]:
    judged = [f"  {name:18} {text}" for name, text in figures["judged"].items()]
    return judged + [
        f"  {name:18} not here: {reason}" for name, reason in figures["not_on_this_device"].items()
    ]


_TABLES: dict[str, Callable[[Figures], list[str]]] = {
    "formats_without_cpu_kernel": _formats,
    "planned_against_measured": _planned,
    "neighbour_killed": _killed,
    "started_together": _together,
}


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Options):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    options = Options(**vars(parser.parse_args()))
    machine = find_machine(options.device)
    require_made(machine)
    report = Report(options, machine)
    wrong = report.run("planned_against_measured", lambda: planned_against_measured(machine))
    wrong += report.run("formats_without_cpu_kernel", lambda: formats_without_cpu_kernel(machine))
    with (
        tempfile.TemporaryDirectory(prefix="quantile-gpu-") as scratch,
        open_stage(machine, Path(scratch)) as stage,
    ):
        wrong += report.run(
            "neighbour_killed", lambda: neighbour_killed(stage, options.engines, options.phase_s)
        )
        wrong += report.run(
            "started_together",
            lambda: started_together(stage, options.engines, options.rounds, report.left_s()),
        )
    print("\n" + ("\n".join(wrong) or f"all as planned; figures in {options.out}"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
