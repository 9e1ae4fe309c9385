"""The precision ladder on real engines: a burst of twice what the best variant carries.

Two vLLM engines and llama.cpp on the same two cores, behind the router. What the best variant
carries is measured first, and the SLO follows from the calm stretch, so that nothing here depends
on how fast the machine is. The same arrivals meet all traffic on the best variant, then the ladder.
"""

import asyncio
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from rich.console import Console
from rich.table import Table

from serve_app.config.serve_content import variant_application
from serve_app.domain.errors import CheckpointError
from serve_app.reference.corpus import facts
from serve_app.reference.locate import resolve
from serve_app.simulate.outcome import Limits, Outcome, outcome
from serve_app.simulate.picture import Scene, draw_scene
from serve_app.simulate.run import Played
from serve_app.simulate.trace import Tokens
from tests.engine_cpu.conftest import CONFIG, MODEL
from tests.fakes.ladder_traffic import Live, Plan, carried_per_s, play
from tests.fakes.serve_client import replica_pids, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
BEST, INT8, Q4 = RUNGS = ("bf16-two", "int8", "gguf-q4-k-m")
"""bf16 takes two requests at a time: it must be full at a rate that two cores carry beside it."""
QUALITY = {BEST: 1.0, INT8: math.exp(-0.0044), Q4: math.exp(-0.0057)}
"""How near the answers' token probabilities are to the baseline's: exp of minus the mean |Δlogp| of
serve_app/family/example/family.md."""
TOKENS = Tokens(48, 80)
CAPITALS = ("France", "Germany", "Spain", "Italy", "Japan", "Egypt", "Norway", "Greece")
SECONDS = float(os.environ.get("QUANTILE_TEST_LADDER_SECONDS", "20"))
"""Of the burst; the calm before it is half as long, the one after it a quarter longer."""
SEED = int(os.environ.get("QUANTILE_TEST_LADDER_SEED", "1"))
OUT = os.environ.get("QUANTILE_TEST_LADDER_OUT")
"""A folder for table and picture."""
BEFORE, BURST, AFTER = "calm before", "burst", "calm after"
WAITS_FOR = 2.5
"""The SLO: a request waits for its first token no longer than so many answers take."""


def questions():
    asked = {f"What is the capital of {country}?" for country in CAPITALS}
    found = tuple(fact for fact in facts() if fact.question in asked)
    assert len(found) == len(CAPITALS)
    return found


def serve_file(user_config: dict) -> dict:
    """configs/local.yaml with bf16 once more, two requests at a time, and Q4_K_M in llama.cpp."""
    config = yaml.safe_load(CONFIG.read_text())
    router, bf16, *_ = config["applications"]
    two = bf16["args"] | {"name": BEST, "engine": bf16["args"]["engine"] | {"max_num_seqs": 2}}
    gguf = {
        "model": MODEL,
        "name": Q4,
        "checkpoint": f"reference://{Q4}",
        "method": "gguf",
        "engine": {"kind": "llamacpp", "max_model_len": 1024, "max_num_seqs": 16, "threads": 1},
    }
    many = {"max_ongoing_requests": 1000}  # without a ladder the queue is the engine's to hold
    config["applications"] += [variant_application(two, many), variant_application(gguf)]
    router["deployments"][0]["user_config"] = user_config
    return config


def status(base_url: str) -> dict:
    return httpx.get(f"{base_url}/status", timeout=30).json()


@dataclass(frozen=True)
class Rungs:
    """The running instance, with the three rungs and whatever rules it is given."""

    serve: object
    folder: Path

    @property
    def base_url(self) -> str:
        return self.serve.base_url

    def follow(self, **rules) -> None:
        """Deploy rules live; returns when the router goes by them and all rungs are ready."""
        user_config = {"split": {BEST: 10_000, INT8: 0, Q4: 0}, **rules}
        file = self.folder / "ladder.yaml"
        file.write_text(yaml.safe_dump(serve_file(user_config), sort_keys=False))
        self.serve.deploy(file)
        wait_until(lambda: self._goes_by(rules), 200, "the rungs are ready")

    def _goes_by(self, rules: dict) -> bool:
        seen = status(self.base_url)
        is_ready = all(seen["variants"].get(name, {}).get("ready") for name in RUNGS)
        return is_ready and (seen["aliases"][MODEL]["ladder"] is not None) == ("ladder" in rules)


@pytest.fixture(scope="module")
def rungs(serve, tmp_path_factory):
    try:
        resolve(f"reference://{Q4}")
    except CheckpointError as error:
        pytest.fail(f"{error}; `make test` does it")
    found = Rungs(serve, tmp_path_factory.mktemp("ladder"))
    found.follow()
    yield found
    serve.deploy(CONFIG)
    wait_until(lambda: is_as_before(serve), 120, "configs/local.yaml is served again")


def is_as_before(serve) -> bool:
    left = [pid for name in (BEST, Q4) for pid in replica_pids(f"{name}:VariantServer", serve.pid)]
    return not left and httpx.get(f"{serve.base_url}/readyz", timeout=30).status_code == 200


@dataclass(frozen=True)
class Runs:
    """Both policies over the same plan."""

    plan: Plan
    carried_per_s: float
    limits: Limits
    fixed: Live
    ladder: Live

    def of(self, name: str, live: Live, phase: str | None = None) -> Outcome:
        """What a policy came to in a phase, or in all."""
        inside = [
            job for job in live.played.jobs if phase in (None, self.plan.phase_at(job.arrived_s))
        ]
        played = Played(tuple(inside), live.played.shares)
        return outcome(name, played, self.limits, QUALITY)

    @property
    def ttft_s(self) -> float:
        assert self.limits.ttft_s is not None
        return self.limits.ttft_s


@pytest.fixture(scope="module")
def runs(rungs, tmp_path_factory) -> Runs:
    asked = questions()
    pinned = [f"{MODEL}@{name}" for name in RUNGS]
    for name in pinned:  # what an engine does for the first time is slow
        asyncio.run(load(rungs.base_url, name, asked, 1))
    # the better of two: what else the machine does at the moment only ever takes away
    carried = max(asyncio.run(load(rungs.base_url, pinned[0], asked, 4)) for _ in range(2))
    phases = (
        (BEFORE, carried / 2, SECONDS / 2),
        (BURST, carried * 2, SECONDS),
        (AFTER, carried / 2, SECONDS * 1.25),
    )
    plan = Plan.drawn(phases, TOKENS, asked, SEED)
    fixed = asyncio.run(play(rungs.base_url, MODEL, plan))
    calm = [job for job in fixed.played.jobs if plan.phase_at(job.arrived_s) == BEFORE]
    # the median: of so few requests a P95 would be the two that met a hiccup of the machine
    slo_s = WAITS_FOR * statistics.median(job.end_s - job.first_s for job in calm)
    rungs.follow(ladder={"rungs": list(RUNGS), "ttft_p95_ms": 1000 * slo_s})
    ladder = asyncio.run(play(rungs.base_url, MODEL, plan))
    found = Runs(plan, carried, Limits(slo_s, None), fixed, ladder)
    folder = Path(OUT) if OUT else tmp_path_factory.mktemp("ladder-runs")
    tell(found, folder)
    return found


async def load(base_url: str, model: str, asked, length_s: float) -> float:
    """What a rung carries per second, asked by more than it takes at a time."""
    return await carried_per_s(
        base_url, model, asked, TOKENS, n_clients=4, warmup_s=1, length_s=length_s
    )


def tell(runs: Runs, folder: Path) -> None:
    """Print the table; write it and the picture into `folder`."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("phase", "policy"):
        table.add_column(title)
    for title in ("requests", "SLO missed", "TTFT P95", "quality", *RUNGS):
        table.add_column(title, justify="right")
    for phase in (BEFORE, BURST, AFTER, None):
        for name, live in ((f"all on {BEST}", runs.fixed), ("ladder", runs.ladder)):
            each = runs.of(name, live, phase)
            shares = (f"{each.served.get(rung, 0) / each.n:.1%}" for rung in RUNGS)
            table.add_row(
                phase or "all",
                name,
                str(each.n),
                f"{each.n_violations} ({each.violation_share:.1%})",
                f"{1000 * each.ttft_p95_s:,.0f} ms",
                f"{each.quality:.4f}",
                *shares,
            )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ladder-live.txt").open("w") as file:
        for console in (Console(width=120), Console(file=file, width=120)):
            console.print(table)
            console.print(
                f"{BEST} carries {runs.carried_per_s:.2f} requests/s, "
                f"SLO: P95 of TTFT of {1000 * runs.ttft_s:.0f} ms, "
                f"{gain(runs):.1f} times fewer violations, "
                f"{runs.of('', runs.ladder).turns} turns; {folder}/ladder-live.png"
            )
            for at_s, reason in runs.ladder.reasons:
                console.print(f"{at_s:6.1f} s  {reason}", soft_wrap=True, highlight=False)
    scene = Scene(
        rungs=RUNGS,
        quality=QUALITY,
        ttft_limit_s=runs.ttft_s,
        ladder=runs.ladder.played,
        fixed=runs.fixed.played,
        fixed_name=f"all on {BEST}",
    )
    draw_scene(scene, folder / "ladder-live.png")


def gain(runs: Runs) -> float:
    """How many times fewer violations; with none at all, as if there had been one."""
    fixed, ladder = (runs.of("", live).n_violations for live in (runs.fixed, runs.ladder))
    return fixed / max(1, ladder)


def test_every_answer_is_whole_and_right_and_none_fell_back(runs):
    for live, reasons in ((runs.fixed, {"weighted"}), (runs.ladder, {"weighted", "ladder"})):
        assert live.wrong == []
        assert len(live.played.jobs) == len(runs.plan.arrivals)
        assert {each.reason for each in live.sent} == reasons
        assert all((each.variant == BEST) == (each.reason == "weighted") for each in live.sent)


def test_the_best_variant_alone_misses_the_slo_in_most_of_the_burst(runs):
    assert runs.of("", runs.fixed, BEFORE).violation_share <= 0.1
    assert runs.of("", runs.fixed, BURST).violation_share > 0.5


def test_the_ladder_misses_it_several_times_less_often(runs):
    """7 to 12 times less often on two cores with other work beside it, and more without (decision
    0018). Ten times, as in the simulation, is for engines that do not slow each other down."""
    assert gain(runs) >= 3


def test_share_goes_down_in_the_burst_and_comes_back(runs):
    shares = [(at_s, bp[BEST]) for at_s, bp in runs.ladder.played.shares]
    (_, first), *_, (_, last) = shares
    lowest = min(bp for at_s, bp in shares if runs.plan.phase_at(at_s) == BURST)
    assert first == 10_000
    assert lowest < 8000
    # all of it within 25 s where the machine is quiet; less where a limit was learned amid a hiccup
    assert last >= lowest + 1000
    burst = runs.of("", runs.ladder, BURST)
    assert burst.served[BEST] < 0.75 * burst.n


def test_it_turns_once(runs):
    assert runs.of("", runs.ladder).turns == 1


def test_quality_is_given_up_in_the_burst_most_of_all(runs):
    before, burst, after = (runs.of("", runs.ladder, phase) for phase in (BEFORE, BURST, AFTER))
    assert QUALITY[Q4] < burst.quality < after.quality <= 1.0
    assert burst.quality < before.quality
