"""The best possible, with the arrivals known: what a ladder is held against.

Two figures, one from each side. `hindsight` is a policy: each request goes to the best rung with
room, judged by the engines' true state without any delay, and the rungs' limits are those that
turn out best for this very trace, of all that violate the SLO no more often than the ladder did.
`bound` is what no policy exceeds that does not know how long answers will be: work arrives as a
fluid, each rung takes all that its fastest batch within the SLO can begin in time, and violations
that are allowed cost nothing and are all served by the best.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from serve_app.simulate.curves import ServiceCurve
from serve_app.simulate.outcome import Limits, Outcome, outcome
from serve_app.simulate.policies import Overflow, Policy
from serve_app.simulate.run import Arrival, Clock, Fleet, play
from serve_app.simulate.trace import mean_tokens

_PER_RUNG = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
_FULL = _PER_RUNG.index(1.0)
"""Limits that are tried, as parts of the batch that carries most within the SLO."""
_SLICE_S = 0.05


def hindsight(
    trace: Sequence[Arrival],
    fleet: Fleet,
    rungs: Sequence[str],
    limits: Limits,
    quality: Mapping[str, float],
    most_violations: int,
) -> Outcome | None:
    """The best overflow policy with at most `most_violations`; None if each has more."""
    candidates = _candidates(trace, fleet, rungs, limits)
    chosen = [each[_FULL] for each in candidates]
    best: Outcome | None = None
    for rung, tried in enumerate(candidates):  # one rung after the other, the dearest first
        for limit in tried:
            at = [*chosen[:rung], limit, *chosen[rung + 1 :]]
            played = play(trace, fleet, partial(_overflow, rungs, at))
            found = outcome("best in hindsight", played, limits, quality)
            is_allowed = found.n_violations <= most_violations
            if is_allowed and (best is None or found.quality > best.quality):
                best, chosen = found, at
    return best


def _overflow(rungs: Sequence[str], limits: Sequence[int], clock: Clock) -> Policy:
    return Overflow(rungs, limits)


def _candidates(
    trace: Sequence[Arrival], fleet: Fleet, rungs: Sequence[str], limits: Limits
) -> list[list[int]]:
    """Per rung but the last, limits to try, ascending."""
    tokens = mean_tokens(trace)
    per_rung = []
    for name in rungs[:-1]:
        carried = fleet.curves[name].best_batch(tokens, limits.tpot_s)
        n_replicas = fleet.replicas.get(name, 1)
        per_rung.append([max(1, round(part * carried * n_replicas)) for part in _PER_RUNG])
    return per_rung


def bound(
    trace: Sequence[Arrival],
    fleet: Fleet,
    rungs: Sequence[str],
    limits: Limits,
    quality: Mapping[str, float],
    most_violations: int,
) -> float:
    """Mean quality that nothing exceeds with at most `most_violations`."""
    slices = Counter(int(each.at_s / _SLICE_S) for each in trace)
    left = [float(slices[index]) for index in range(max(slices) + 1)]
    tokens, total = mean_tokens(trace), 0.0
    for name in rungs[:-1]:
        curve, n_replicas = fleet.curves[name], fleet.replicas.get(name, 1)
        taken = _taken(left, curve, n_replicas, tokens, limits)
        total += quality[name] * sum(taken)
        left = [offered - kept for offered, kept in zip(left, taken, strict=True)]
    forgiven = min(float(most_violations), sum(left))
    total += quality[rungs[0]] * forgiven + quality[rungs[-1]] * (sum(left) - forgiven)
    return total / len(trace)


def _taken(
    offered: Sequence[float],
    curve: ServiceCurve,
    n_replicas: int,
    tokens: float,
    limits: Limits,
) -> list[float]:
    """What a rung can take of each slice: its backlog never above a batch and the work of one
    TTFT limit."""
    batch = curve.best_batch(tokens, limits.tpot_s)
    rate_per_s = n_replicas * curve.rate_per_s(batch, tokens)
    room = n_replicas * batch + rate_per_s * (limits.ttft_s or 0.0)
    backlog, taken = 0.0, []
    for arriving in offered:
        kept = min(arriving, max(0.0, room - backlog))
        taken.append(kept)
        backlog = max(0.0, backlog + kept - rate_per_s * _SLICE_S)
    return taken
