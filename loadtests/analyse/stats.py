"""Percentiles that say when they cannot be given, with intervals that need no distribution."""

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

MIN_SAMPLES = {0.50: 1, 0.95: 20, 0.99: 100, 0.999: 1000}
"""Samples below which a percentile would be no more than the largest one: n >= 1 / (1 - p)."""

CONFIDENCE = 0.95


class Quantile(msgspec.Struct, frozen=True):
    """One percentile of `n` samples with its 95 % interval, in the samples' unit.

    `value` None comes with a `reason`. It is infinite where failures reach the percentile (JSON
    null; the reason says so). A bound is None where the sample is too small for one.
    """

    p: float
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def nearest_rank(ordered: Sequence[float], p: float) -> float:
    """The `ceil(p n)`-th smallest sample (numpy's `inverted_cdf`). `ordered` is not empty."""
    return ordered[rank(len(ordered), p) - 1]


def rank(n: int, p: float) -> int:
    """`ceil(p n)`, at least 1; the product is rounded first, so that 0.95 * 20 is 19."""
    return max(1, math.ceil(round(p * n, 9)))


def quantile(samples: Sequence[float], p: float, n_failures: int = 0) -> Quantile:
    """Percentile `p` of `samples` in the order in which they were taken.

    Each of `n_failures` counts as one sample of infinite value (AIPerf's `adj_*`), so P99 is
    infinite from 1 % failures on. The interval is that of `interval_ranks`, on the number of
    independent samples that `effective_size` estimates.
    """
    n = len(samples) + n_failures
    need = MIN_SAMPLES.get(p, math.ceil(1 / (1 - p)))
    if n < need:
        return Quantile(p=p, value=None, n=n, reason=f"need n >= {need}, have {n}")
    ordered = sorted(samples) + [math.inf] * n_failures
    n_eff = round(n * effective_size(samples) / len(samples)) if samples else 1
    lowest, highest = interval_ranks(n_eff, p)
    value = nearest_rank(ordered, p)
    share = n_failures / n
    return Quantile(
        p=p,
        value=value,
        n=n,
        low=None if lowest is None else min(value, nearest_rank(ordered, lowest / (n_eff + 1))),
        high=None if highest is None else max(value, nearest_rank(ordered, highest / (n_eff + 1))),
        reason=f"infinite: {share:.1%} of the requests failed" if math.isinf(value) else None,
    )


def effective_size(samples: Sequence[float]) -> int:
    """Independent samples that carry as much as these: `n (1 - r) / (1 + r)`, `r` the lag-1
    autocorrelation, never above n and never below 1 (0 for no samples).
    """
    n = len(samples)
    if n < 3:
        return n
    values = np.asarray(samples, dtype=np.float64)
    centred = values - values.mean()
    variance = float(centred @ centred)
    if variance == 0.0:
        return n
    r = max(0.0, float(centred[1:] @ centred[:-1]) / variance)
    return max(1, min(n, math.floor(n * (1 - r) / (1 + r))))


@lru_cache(maxsize=4096)
def interval_ranks(
    n: int, p: float, confidence: float = CONFIDENCE
) -> tuple[int | None, int | None]:
    """Ranks (from 1) between which percentile `p` lies with `confidence`; None: no such rank.

    Order statistics (Hahn & Meeker, Statistical Intervals, 5.2): the number of samples below
    the true percentile is binomial(n, p), so rank `l` is a lower bound with
    `P(B >= l) >= 1 - a/2` and rank `u` an upper one with `P(B <= u - 1) >= 1 - a/2`.
    """
    if n < 1:
        return None, None
    tail = (1 - confidence) / 2
    cdf = _binomial_cdf(n, p)
    lower = int(np.searchsorted(cdf, tail, side="right"))
    upper = int(np.searchsorted(cdf, 1 - tail, side="left")) + 1
    return (lower if lower >= 1 else None), (upper if upper <= n else None)


def _binomial_cdf(n: int, p: float) -> NDArray[np.float64]:
    """`P(B <= k)` for k = 0..n of a binomial(n, p)."""
    k = np.arange(n + 1, dtype=np.float64)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(k[1:]))))
    log_pmf = (
        log_factorial[n]
        - log_factorial
        - log_factorial[::-1]
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    return np.asarray(np.cumsum(np.exp(log_pmf)), dtype=np.float64)
