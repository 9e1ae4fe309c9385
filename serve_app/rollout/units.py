"""From what was seen to what a guard's test takes: one entry a unit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.rollout.betting import Values, matched
from serve_app.rollout.guards import Guard, Kind, Property
from serve_app.rollout.observations import ArmWindow, Look, Pairs


@dataclass(frozen=True)
class Units:
    """SHARE and LIMIT: shares in [0, 1] of both arms, one entry a unit; LIMIT has no baseline's.

    MEAN: `candidate` holds log ratios, and `baseline` is 0.
    """

    candidate: Values
    baseline: Values


NO_UNITS = Units(np.empty(0), np.empty(0))


def units_of(guard: Guard, look: Look, threshold_s: float | None, seed: Sequence[int]) -> Units:
    """The guard's units of a look. `threshold_s`: of a guard that has one; None: not known yet.

    `seed` decides which requests of a window go together.
    """
    if guard.of is Property.SLOW and guard.kind is not Kind.MEAN and threshold_s is None:
        return NO_UNITS
    of_pairs = units_of_pairs(guard, look.pairs, threshold_s)
    if not look.windows:
        return of_pairs
    parts, rng = [of_pairs], np.random.default_rng(seed)
    for window in look.windows if guard.kind is not Kind.MEAN else ():
        candidate = window_counts(guard, window.candidate, threshold_s)
        baseline = window_counts(guard, window.baseline, threshold_s)
        if guard.kind is Kind.LIMIT:
            k, n = candidate
            parts.append(Units(np.repeat([1.0, 0.0], [k, n - k]), np.zeros(n)))
        else:
            parts.append(Units(*matched(candidate, baseline, rng)))
    return Units(
        np.concatenate([part.candidate for part in parts]),
        np.concatenate([part.baseline for part in parts]),
    )


def units_of_pairs(guard: Guard, pairs: Pairs, threshold_s: float | None) -> Units:
    """One unit a pair of which both arms tell."""
    if not len(pairs):
        return NO_UNITS
    if guard.kind is Kind.MEAN:
        assert guard.latency is not None
        latencies_s = pairs.latencies_s[guard.latency]
        known = latencies_s[(latencies_s > 0).all(axis=1)]
        return Units(np.log(known[:, 1] / known[:, 0]), np.zeros(len(known)))
    if guard.of is Property.DISAGREES:
        floor = pairs.floor_disagrees if guard.against_floor else np.zeros(len(pairs))
        has = np.column_stack([floor, pairs.disagrees])
    elif guard.of is Property.ERROR:
        has = (~pairs.ok).astype(float)
    elif guard.of is Property.WRONG:
        has = pairs.wrong
    else:
        if threshold_s is None:
            return NO_UNITS
        assert guard.latency is not None
        latencies_s = pairs.latencies_s[guard.latency]
        above = np.where(np.isnan(latencies_s), np.nan, latencies_s > threshold_s)
        # what failed never came in time: leaving it out would flatter the arm that fails
        has = np.where(pairs.ok, above, 1.0)
    if guard.kind is Kind.LIMIT:
        known = has[~np.isnan(has[:, 1])]
        return Units(known[:, 1], np.zeros(len(known)))
    known = has[~np.isnan(has).any(axis=1)]
    return Units(known[:, 1], known[:, 0])


def window_counts(guard: Guard, arm: ArmWindow, threshold_s: float | None) -> tuple[int, int]:
    """(requests with the property, requests) of an arm; (0, 0) where windows do not tell."""
    if guard.of is Property.ERROR:
        return arm.errors, arm.requests
    if guard.of is not Property.SLOW or threshold_s is None:
        return 0, 0
    assert guard.latency is not None
    return arm.above(guard.latency, threshold_s)
