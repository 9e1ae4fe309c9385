"""`--plan`: what a rollout would do, and how its tests fare on made-up traffic."""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.markup import escape

from loadtests.report.terminal import new_table
from serve_app.config.rollout import RolloutConfig
from serve_app.config.rollout_evidence import MetricsConfig
from serve_app.rollout.guards import Kind
from serve_app.rollout.plan import RolloutPlan
from serve_app.rollout.simulate import Arm, Outcome, Traffic, simulate

SLOWER = 1.3


def show_plan(config: RolloutConfig, n_simulated: int, console: Console) -> None:
    """Print the steps, the guards and, with `n_simulated` above 0, how made-up rollouts end."""
    plan = config.to_plan()
    console.print(_steps(config, plan))
    console.print(_guards(plan))
    for line in (
        f"Rolled back once the one e-value against {config.candidate} reaches "
        f"{1 / plan.alpha:,.0f}, at any look of any step.",
        "A step that asks for evidence ends well once each guard's e-value for its margin has "
        f"reached {1 / plan.alpha:,.0f}.",
        f"After the last step {config.candidate} has all that {config.baseline} had. Nothing was "
        "changed.",
    ):
        console.print(escape(line), highlight=False, soft_wrap=True)
    if n_simulated:
        console.print(_simulated(simulated_plan(config), probed_share(config), n_simulated))


def _steps(config: RolloutConfig, plan: RolloutPlan) -> object:
    table = new_table(f"{config.model}: {config.baseline} to {config.candidate}")
    for name in ("step", "share", "ends well on", "requests", "seconds"):
        table.add_column(name)
    for i, step in enumerate(plan.steps, 1):
        table.add_row(
            str(i),
            f"{step.share_bp / 100:g} %",
            step.advance_on.replace("_", " "),
            f"{step.min_requests:,} to {step.max_requests:,}",
            f"{step.min_duration_s:,.0f} to {step.max_duration_s:,.0f}",
        )
    return table


def _guards(plan: RolloutPlan) -> object:
    table = new_table("Guards")
    for name in ("guard", "test", "rolled back beyond", "promoted within"):
        table.add_column(name)
    for guard in plan.guards:
        test = {"share": "betting", "mean": "mSPRT", "limit": "Beta mixture"}[guard.kind]
        table.add_row(guard.name, test, guard.says(guard.tolerated), guard.says(guard.margin))
    return table


def _simulated(plan: RolloutPlan, probed: float, n: int) -> object:
    table = new_table(
        f"{n} simulated rollouts each (lognormal latencies with a heavy tail, drifting load; "
        f"{probed:.0%} of the candidate's requests are probes)"
    )
    for name in ("candidate", "promoted", "rolled back", "inconclusive", "median requests"):
        table.add_column(name, justify="left" if name == "candidate" else "right")
    for name, traffic in _traffic():
        outcomes = [
            simulate(plan, traffic, np.random.default_rng([i]), look_size=100, probed=probed)
            for i in range(n)
        ]
        table.add_row(name, *_row(outcomes))
    return table


def simulated_plan(config: RolloutConfig) -> RolloutPlan:
    """Without limits: what is in seconds says nothing of made-up latencies."""
    plan = config.to_plan()
    return replace(plan, guards=tuple(g for g in plan.guards if g.kind is not Kind.LIMIT))


def probed_share(config: RolloutConfig) -> float:
    """How much of what is seen of the candidate comes in pairs: half, where there are metrics of
    live traffic as well, whose rate no file knows."""
    is_live = [isinstance(source, MetricsConfig) for source in config.evidence]
    return 0.0 if all(is_live) else 0.5 if any(is_live) else 1.0


def _traffic() -> Iterator[tuple[str, Traffic]]:
    yield "the same as the baseline", Traffic()
    yield f"{SLOWER - 1:.0%} slower at P99 alone", Traffic(candidate=Arm().slower_at_p99(SLOWER))
    yield f"{SLOWER - 1:.0%} slower", Traffic(candidate=Arm().slower(SLOWER))
    yield "2 % errors", Traffic(candidate=Arm(error_rate=0.02))


def _row(outcomes: list[Outcome]) -> list[str]:
    counts = Counter(outcome.ruling.verdict.value for outcome in outcomes)
    shares = [
        f"{counts[verdict] / len(outcomes):.1%}"
        for verdict in ("promote", "rollback", "inconclusive")
    ]
    return [*shares, f"{statistics.median(outcome.n_requests for outcome in outcomes):,.0f}"]
