"""Perplexity, KL and agreement from token log-probabilities, paired by window. Pure.

KL from the k most likely tokens of both is a lower bound: tokens that both report, the rest as one
bucket, by the data-processing inequality.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.quality import Agreement, Estimate
from serve_app.evaluate.statistics import bootstrap
from serve_app.evaluate.statistics.bootstrap import Interval, Values

Top = Sequence[Mapping[str, float]]
P99 = 0.99
MAX_LOG = 100.0
"""A perplexity is shown as exp(100), 3e43, at most: a finite float, and so are its moments."""
LEAST = 1e-12
"""Probability of a bucket at least: rounding leaves 0, or less."""


@dataclass(frozen=True)
class Window:
    """Log-probabilities of one window's tokens after the first, and the most likely ones."""

    own: Values
    top: Top | None


@dataclass(frozen=True)
class Compared:
    """One window of a variant against the baseline's, token by token."""

    delta: Values
    kl: Values | None
    same_best: NDArray[np.bool_] | None


Pick = Callable[[Compared], Values | None]


def kl_lower_bound(base: Mapping[str, float], other: Mapping[str, float]) -> float:
    """KL(base || other) in nats of one position, at least; natural log-probabilities by token."""
    kl = p_sum = q_sum = 0.0
    for token, log_p in base.items():
        log_q = other.get(token)
        if log_q is not None:
            p = math.exp(log_p)
            kl += p * (log_p - log_q)
            p_sum += p
            q_sum += math.exp(log_q)
    p_rest, q_rest = max(1 - p_sum, LEAST), max(1 - q_sum, LEAST)
    return max(0.0, kl + p_rest * math.log(p_rest / q_rest))


def compare(base: Window, other: Window) -> Compared:
    """Of the same window. `kl` and `same_best` are None where one has no top, or names tokens
    another way.
    """
    delta = other.own - base.own
    if base.top is None or other.top is None or not _same_names(base.top, other.top):
        return Compared(delta, None, None)
    pairs = list(zip(base.top, other.top, strict=True))
    return Compared(
        delta,
        np.array([kl_lower_bound(p, q) for p, q in pairs]),
        np.array([max(p, key=p.__getitem__) == max(q, key=q.__getitem__) for p, q in pairs]),
    )


def _same_names(first: Top, second: Top) -> bool:
    """Whether both name tokens by id, or both by text."""
    return all(p and q and not p.keys().isdisjoint(q) for p, q in zip(first, second, strict=True))


def agreement(
    found: Sequence[Compared], floor: Sequence[Compared] | None, seed: int, n_resamples: int
) -> Agreement:
    """Over all windows; with `floor` (the same windows) each figure minus the floor's."""

    def mean(pick: Pick) -> Estimate | None:
        return _mean(found, floor, pick, seed, n_resamples)

    return Agreement(
        kl_mean=mean(lambda each: each.kl),
        kl_p99=_p99(found, floor, seed),
        top1_agreement=mean(
            lambda each: None if each.same_best is None else each.same_best.astype(np.float64)
        ),
        abs_delta_logprob=mean(lambda each: np.abs(each.delta)),
    )


def _mean(
    found: Sequence[Compared],
    floor: Sequence[Compared] | None,
    pick: Pick,
    seed: int,
    n_resamples: int,
) -> Estimate | None:
    values = [pick(each) for each in found]
    less = [pick(each) for each in floor] if floor is not None else [None] * len(values)
    sums, sizes = [], []
    for value, other in zip(values, less, strict=True):
        if value is None or (floor is not None and other is None):
            return None
        sums.append(float(value.sum()) - (0.0 if other is None else float(other.sum())))
        sizes.append(float(len(value)))
    return ratio_estimate(np.array(sums), np.array(sizes), seed=seed, n_resamples=n_resamples)


def _p99(found: Sequence[Compared], floor: Sequence[Compared] | None, seed: int) -> Estimate | None:
    first = _p99_of(found, seed)
    if first is None or floor is None:
        return None if first is None else _with_ends(first[0], first[1])
    second = _p99_of(floor, seed)
    if second is None:
        return None
    value = first[0] - second[0]
    paired = first[1] is not None and second[1] is not None
    return _with_ends(value, first[1] - second[1] if paired else None)  # type: ignore[operator]


def _p99_of(found: Sequence[Compared], seed: int) -> tuple[float, Values | None] | None:
    rows = [each.kl for each in found if each.kl is not None]
    if not rows or len(rows) < len(found):
        return None
    blocks = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    values = np.concatenate(rows)
    replicates = bootstrap.quantile_replicates(values, blocks, P99, seed=seed)
    return bootstrap.quantile_of(values, P99), replicates


def _with_ends(value: float, replicates: Values | None) -> Estimate:
    if replicates is None:
        return Estimate(value=value)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))


def capped_exp(log: float) -> float:
    """exp(log), MAX_LOG at most: of the most broken variant it would overflow."""
    return math.exp(min(log, MAX_LOG))


def _exp(logs: Values) -> Values:
    return np.asarray(np.exp(np.minimum(logs, MAX_LOG)), np.float64)


def ratio_estimate(
    numerators: Values,
    denominators: Values,
    *,
    is_log: bool = False,
    seed: int = 0,
    n_resamples: int = bootstrap.RESAMPLES,
) -> Estimate | None:
    """Sum over sum with its interval by blocks; `is_log`: its exponential. None without a block."""
    if not len(numerators) or denominators.sum() == 0:
        return None
    ratio = float(numerators.sum() / denominators.sum())
    value = capped_exp(ratio) if is_log else ratio
    ends: Interval | None = (
        bootstrap.ratio_interval(numerators, denominators, _exp, seed=seed, n_resamples=n_resamples)
        if is_log
        else bootstrap.ratio_interval(numerators, denominators, seed=seed, n_resamples=n_resamples)
    )
    return Estimate(value=value, low=ends[0], high=ends[1]) if ends else Estimate(value=value)
