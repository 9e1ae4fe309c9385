"""The choice by a declared goal: decided, or not and why.

A variant is chosen where the goal's own axis leaves no room for another candidate to be better
beyond the margin. Among several of whom that is true, decided differences on the other axes count,
in the order of `TIES`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.advise.candidates import Goal, Standing, Status, Terms, standings
from serve_app.advise.contrasts import Contrast, Interval, judge_gain, undecided
from serve_app.advise.evidence import COST, MEMORY, QUALITY, Axis, AxisKind, Evidence, latency_at
from serve_app.advise.pareto import pareto_front
from serve_app.domain.verdict import Verdict

BALANCE_MARGIN = math.log(1.05)
"""Scores of the balanced goal within 5 % of each other count as level."""

_TIES: dict[Goal, tuple[AxisKind, ...]] = {
    Goal.HIGHEST_QUALITY: (AxisKind.COST, AxisKind.LATENCY, AxisKind.MEMORY),
    Goal.CHEAPEST: (AxisKind.QUALITY, AxisKind.LATENCY, AxisKind.MEMORY),
    Goal.MEMORY_BOUND: (AxisKind.LATENCY, AxisKind.COST, AxisKind.MEMORY),
    Goal.BALANCED: (AxisKind.MEMORY, AxisKind.COST),
}


@dataclass(frozen=True)
class Choice:
    """What comes of one goal at some load levels.

    pass: `chosen` is; fail: no variant qualifies; inconclusive: `leader` leads by the points, if
    any may be chosen at all, and `open_questions` stand in the way.
    """

    goal: Goal
    levels: tuple[str, ...]
    verdict: Verdict
    chosen: str | None
    leader: str | None
    front: tuple[str, ...]
    """Of the variants that are not out."""
    equals: tuple[str, ...]
    """Others that the goal's axis does not tell from the chosen one."""
    open_questions: tuple[str, ...]
    next_steps: tuple[str, ...]
    standings: tuple[Standing, ...]


def choose(evidence: Evidence, terms: Terms) -> Choice:
    """The choice under these terms. Deterministic: the order of the variants breaks no tie that
    evidence breaks.
    """
    found = standings(evidence, terms)
    candidates = [each.name for each in found if each.status is not Status.OUT]
    open_names = [each.name for each in found if each.status is Status.OPEN]
    axes = evidence.axes(terms.levels)
    on_front = pareto_front(evidence, candidates, axes)
    if not candidates:
        reasons = tuple(f"{each.name}: {'; '.join(each.reasons)}" for each in found)
        return Choice(
            terms.goal, terms.levels, Verdict.FAIL, None, None, (), (), reasons, (), found
        )
    best = [
        name
        for name in open_names
        if all(objective(evidence, terms, name, o).is_not_worse for o in candidates if o != name)
    ]
    if best:
        chosen = _break_ties(evidence, terms, best, on_front)
        equals = tuple(name for name in best if name != chosen)
        return Choice(
            terms.goal, terms.levels, Verdict.PASS, chosen, chosen, on_front, equals, (), (), found
        )
    leader = _leader(evidence, terms, open_names)
    questions, steps = _questions(evidence, terms, found, leader)
    return Choice(
        terms.goal, terms.levels, Verdict.INCONCLUSIVE, None, leader, on_front, (),
        tuple(questions), tuple(dict.fromkeys(steps)), found,
    )  # fmt: skip


def objective(evidence: Evidence, terms: Terms, first: str, second: str) -> Contrast:
    """How two variants stand to each other in what the goal asks for."""
    if terms.goal is Goal.BALANCED:
        return balance(evidence, terms, first, second)
    axis = COST if terms.goal is Goal.CHEAPEST else QUALITY
    known = evidence.contrast(axis, first, second)
    return known or undecided(first, second, 0.0, f"{axis} was not compared")


def balance(evidence: Evidence, terms: Terms, first: str, second: str) -> Contrast:
    """The gain in the weighted sum of logarithms: scale-free, so no unit has to be traded.

    Latency, memory and cost count by the logarithm of their ratio, latency as the mean over the
    load levels; a loss of quality as large as the bar counts as a factor of 2. Axes of which
    nothing is known for any variant are left out. The interval's ends are the sums of the axes'
    ends: it holds whenever theirs do.
    """
    total, low, high = 0.0, 0.0, 0.0
    for axis, weight in weighted_axes(evidence, terms):
        known = evidence.contrast(axis, first, second)
        if known is None or known.gain is None:
            reason = known.reason if known else "not compared"
            return undecided(first, second, BALANCE_MARGIN, f"{axis}: {reason}")
        scale = weight * (math.log(2) / terms.loss_unit if axis == QUALITY else 1.0)
        total += scale * known.gain
        low += scale * (-math.inf if known.low is None else known.low)
        high += scale * (math.inf if known.high is None else known.high)
    gain = Interval(total, _finite(low), _finite(high))
    return judge_gain(first, second, gain, BALANCE_MARGIN)


def weighted_axes(evidence: Evidence, terms: Terms) -> list[tuple[Axis, float]]:
    """The axes that the balanced goal adds up, each with its weight."""
    axes = evidence.axes(terms.levels)
    n_levels = sum(axis.kind is AxisKind.LATENCY for axis in axes)
    found = []
    for axis in axes:
        weight = terms.weights.get(axis.kind, 0.0)
        if axis.kind is AxisKind.LATENCY:
            weight /= n_levels
        if weight > 0:
            found.append((axis, weight))
    if QUALITY not in axes and terms.weights.get(AxisKind.QUALITY, 0.0) > 0:
        found.append((QUALITY, 1.0))  # never left out for want of evidence
    return found


def _break_ties(
    evidence: Evidence, terms: Terms, best: Sequence[str], on_front: Sequence[str]
) -> str:
    left = [name for name in best if name in on_front] or list(best)
    for kind in _TIES[terms.goal]:
        axes = [latency_at(level) for level in terms.levels]
        axes = axes if kind is AxisKind.LATENCY else [Axis(kind)]
        for axis in axes:
            left = [name for name in left if not _is_beaten(evidence, axis, name, left)] or left
    memory = evidence.axes(terms.levels).count(MEMORY)
    if memory and all(evidence[name].memory for name in left):
        return min(left, key=lambda name: evidence[name].memory.compared_bytes)  # type: ignore[union-attr]
    return left[0]


def _is_beaten(evidence: Evidence, axis: Axis, name: str, others: Sequence[str]) -> bool:
    contrasts = (evidence.contrast(axis, name, other) for other in others if other != name)
    return any(each is not None and each.is_worse for each in contrasts)


def _leader(evidence: Evidence, terms: Terms, names: Sequence[str]) -> str | None:
    """The one that wins most pairs by the points: where to look, no decision."""
    if not names:
        return None

    def wins(name: str) -> int:
        gains = (objective(evidence, terms, name, other).gain for other in names if other != name)
        return sum(gain is not None and gain > 0 for gain in gains)

    return max(names, key=wins)


def _questions(
    evidence: Evidence, terms: Terms, found: Sequence[Standing], leader: str | None
) -> tuple[list[str], list[str]]:
    """What stands in the way of a decision, and what to measure."""
    questions: list[str] = []
    steps: list[str] = []
    for each in found:
        if each.status is Status.UNKNOWN:
            beaten = leader and objective(evidence, terms, leader, each.name).is_not_worse
            if not beaten:
                questions.append(f"{each.name}: {'; '.join(each.reasons)}")
                steps += each.missing
    rivals = [each.name for each in found if each.status is Status.OPEN and each.name != leader]
    for rival in rivals:
        if leader is None:
            break
        contrast = objective(evidence, terms, leader, rival)
        if not contrast.is_not_worse:
            questions.append(f"{leader} against {rival}: {contrast.reason}")
            is_cost = terms.goal is Goal.CHEAPEST
            known = [evidence[name].cost_gap for name in (leader, rival)] if is_cost else []
            gaps = [gap for gap in known if gap is not None]
            steps += gaps or [next_step(terms, contrast)]
    return questions, steps


def next_step(terms: Terms, contrast: Contrast) -> str:
    """What would decide a pair, and about how much: half the width takes four times as many."""
    what = {
        Goal.CHEAPEST: "a search for the highest rate (configs/campaigns/saturation.yaml)",
        Goal.BALANCED: "more blocks in the campaign and more items in the evaluation",
    }.get(terms.goal, "more items in the evaluation (quantile eval)")
    pair = f"of {contrast.first} and {contrast.second}"
    if contrast.gain is None or contrast.low is None or contrast.high is None:
        return f"{what}, {pair}"
    half = (contrast.high - contrast.low) / 2
    wanted = max(abs(contrast.gain), contrast.margin)
    if wanted <= 0 or not math.isfinite(half):
        return f"{what}, {pair}"
    times = math.ceil((half / wanted) ** 2)
    return f"{what}, {pair}, about {times} times as many" if times > 1 else f"{what}, {pair}"


def _finite(end: float) -> float | None:
    return end if math.isfinite(end) else None
