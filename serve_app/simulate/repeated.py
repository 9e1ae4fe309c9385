"""The same question of several loads: medians with their ranges, since one burst is luck."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from serve_app.simulate.outcome import Outcome
from serve_app.simulate.study import Answer
from serve_app.simulate.table import HARDLY, HARDLY_TIMES, policy_table


@dataclass(frozen=True)
class Load:
    """Arrivals that are drawn."""

    shape: str
    seed: int


@dataclass(frozen=True)
class Answered:
    """One load, and what came of it."""

    load: Load
    answer: Answer

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"shape": self.load.shape, "seed": self.load.seed, **self.answer.as_json()}


def repeated_table(found: Sequence[Answered]) -> Table:
    """One row per policy over all loads."""
    table = policy_table(f"policy, {len(found)} loads", "SLO missed", "quality", "turns, most")
    answers = [each.answer for each in found]
    policies = (
        [each.fixed for each in answers],
        [each.ladder for each in answers],
        [each.hindsight for each in answers if each.hindsight is not None],
    )
    for outcomes in policies:
        if outcomes:
            table.add_row(*_cells(outcomes, len(answers)))
    table.add_row("nothing exceeds", "", _spread([each.bound for each in answers], "{:.4f}"))
    return table


def _cells(outcomes: Sequence[Outcome], n_loads: int) -> Iterator[str]:
    of = "" if len(outcomes) == n_loads else f", {len(outcomes)} of the loads"
    yield outcomes[0].name + of
    yield _spread([100 * each.violation_share for each in outcomes], "{:.1f}") + " %"
    yield _spread([each.quality for each in outcomes], "{:.4f}")
    yield str(max(each.turns for each in outcomes))


def repeated_lines(found: Sequence[Answered], *, shares_device: bool = False) -> Iterator[str]:
    """What the figures mean, in words: medians, and ranges over the loads."""
    shapes = ", ".join(dict.fromkeys(each.load.shape for each in found))
    seeds = [each.load.seed for each in found]
    yield f"{len(found)} loads: {shapes}; seeds {min(seeds)} to {max(seeds)}; median (range)"
    answers = [each.answer for each in found]
    gains = [each.gain for each in answers if each.fixed.n_violations]
    if gains:
        none_left = "; inf: no violation left" if math.inf in gains else ""
        yield (
            f"times fewer SLO violations than {answers[0].fixed.name}: "
            f"{_spread(gains, '{:.1f}')}{none_left}"
        )
    unneeded = len(answers) - len(gains)
    if unneeded:
        fixed = answers[0].fixed.name
        yield f"loads that need no ladder, since {fixed} violates nothing: {unneeded}"
    lost = [100 * loss for each in answers if (loss := each.lost_to_best) is not None]
    if lost:
        yield (
            "quality lost against the best possible at no more violations: "
            f"{_spread(lost, '{:.2f}')} %, {len(lost)} loads"
        )
    if len(lost) < len(answers):
        yield (
            "loads where no overflow policy with known arrivals violates the SLO as rarely as "
            f"the ladder did: {len(answers) - len(lost)}"
        )
    bounds = [100 * each.lost_to_bound for each in answers]
    yield f"against the bound that nothing exceeds: {_spread(bounds, '{:.2f}')} %"
    if shares_device and gains and statistics.median(gains) < HARDLY_TIMES:
        yield HARDLY


def _spread(values: Sequence[float], form: str) -> str:
    median, low, high = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return median if low == high else f"{median} ({low}-{high})"
