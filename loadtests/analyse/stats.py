"""Percentiles that say when they cannot be given, with intervals that need no distribution."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtests.analyse.bootstrap import block_length, intervals_of_cells, percentile_intervals
from loadtests.analyse.distributions import CONFIDENCE, t_quantile

PERCENTILES = (0.50, 0.90, 0.95, 0.99, 0.999)
MIN_SAMPLES = {0.50: 1, 0.90: 10, 0.95: 20, 0.99: 100, 0.999: 1000}
"""Samples below which a percentile would be no more than the largest one: n >= 1 / (1 - p)."""

BOOTSTRAP_MIN_TAIL = 5
"""Samples that have to lie above a percentile for its bootstrap interval: with fewer, the upper
end would be the largest sample, which is no bound."""
MIN_CELLS = 5
"""Cells from which the differences between them widen the intervals. Below, an interval says how
well the percentile of these very cells is known, and nothing of the next run's."""
MUCH = 3.0
"""The two intervals of a percentile disagree when one is this many times as wide, or more."""

Cells = Sequence[Sequence[float] | NDArray[np.float64] | NDArray[np.bool_]]
"""Samples by cell, in the order in which they were taken."""


class Quantile(msgspec.Struct, frozen=True):
    """One percentile of `n` samples with its 95 % intervals, in the samples' unit.

    `value` None comes with a `reason`. It is infinite where failures reach the percentile (JSON
    null; the reason says so). A bound is None where the sample is too small for one.
    """

    p: float
    value: float | None
    n: int
    low: float | None = None
    """By order statistics, on the effective sample size."""
    high: float | None = None
    reason: str | None = None
    bootstrap_low: float | None = None
    """By circular block bootstrap; None where it was not computed."""
    bootstrap_high: float | None = None
    note: str | None = None
    """What to know of the intervals: that the two disagree, or why there is no upper end."""


def nearest_rank(ordered: Sequence[float] | NDArray[np.float64], p: float) -> float:
    """The `ceil(p n)`-th smallest sample (numpy's `inverted_cdf`). `ordered` is not empty."""
    return float(ordered[rank(len(ordered), p) - 1])


def rank(n: int, p: float) -> int:
    """`ceil(p n)`, at least 1; the product is rounded first, so that 0.95 * 20 is 19."""
    return max(1, math.ceil(round(p * n, 9)))


def too_few(n: int, p: float) -> str | None:
    """Why `n` samples have no percentile `p`; None if they have."""
    need = MIN_SAMPLES.get(p, math.ceil(round(1 / (1 - p), 9)))
    return f"need n >= {need}, have {n}" if n < need else None


def quantile(samples: Sequence[float], p: float) -> Quantile:
    """Percentile `p` of one cell's samples; see `quantiles`."""
    return quantiles([samples], (p,))[0]


def quantiles(
    cells: Cells, percentiles: Sequence[float] = PERCENTILES, *, bootstrap: bool = False
) -> tuple[Quantile, ...]:
    """Percentiles of the samples of all cells together.

    A failure is a sample of infinite value (AIPerf's `adj_*`), so P99 is infinite from 1 %
    failures on. The interval is that of `interval_ranks`, on the number of independent samples
    that `effective_size` estimates; `bootstrap` adds that of the bootstrap, which draws whole
    cells where there are `MIN_CELLS`, and blocks of neighbours where there are fewer.
    """
    arrays = [np.asarray(cell, dtype=np.float64) for cell in cells if len(cell)]
    samples = np.concatenate([*arrays, np.empty(0)])
    ordered = np.sort(samples)
    plain = [_quantile(ordered, p, arrays) for p in percentiles]
    wanted = [q.p for q in plain if bootstrap and _has_tail(q)]
    if not wanted:
        return tuple(plain)
    if len(arrays) >= MIN_CELLS:
        ends = intervals_of_cells(arrays, wanted)
    else:
        ranks = [rank(len(samples), p) for p in wanted]
        length = block_length(len(samples), autocorrelation(arrays))
        ends = percentile_intervals(samples, ranks, length)
    by_p = dict(zip(wanted, ends, strict=True))
    return tuple(with_bootstrap(q, *by_p[q.p]) if q.p in by_p else q for q in plain)


def _has_tail(q: Quantile) -> bool:
    """Whether enough samples lie above the percentile for the bootstrap."""
    return q.value is not None and round(q.n * (1 - q.p), 9) >= BOOTSTRAP_MIN_TAIL


def _quantile(ordered: NDArray[np.float64], p: float, cells: list[NDArray[np.float64]]) -> Quantile:
    n = len(ordered)
    reason = too_few(n, p)
    if reason is not None:
        return Quantile(p=p, value=None, n=n, reason=reason)
    value = nearest_rank(ordered, p)
    n_eff = effective_size(cells, marks=[cell < value for cell in cells])
    lowest, highest = interval_ranks(n_eff, p)
    low = None if lowest is None else min(value, nearest_rank(ordered, lowest / (n_eff + 1)))
    high = None if highest is None else max(value, nearest_rank(ordered, highest / (n_eff + 1)))
    note = None
    if math.isinf(value):
        share = float(np.isinf(ordered).mean())
        reason = f"infinite: {share:.1%} of the requests failed"
    elif high is None:
        need = math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(p))
        note = f"no upper bound: need n_eff >= {need}"
    elif math.isinf(high):
        note = "upper bound infinite: failures reach it"
    return Quantile(p=p, value=value, n=n, low=low, high=high, reason=reason, note=note)


def with_bootstrap(q: Quantile, low: float, high: float) -> Quantile:
    """`q` with its bootstrap interval, and a note where the two disagree much."""
    note = q.note
    if note is None and math.isfinite(low) and math.isinf(high):
        note = "upper bound of the bootstrap infinite: failures reach it"
    if q.low is not None and q.high is not None and math.isfinite(q.high) and math.isfinite(high):
        wide, narrow = sorted((q.high - q.low, high - low), reverse=True)
        if wide > MUCH * narrow or q.low > high or low > q.high:
            note = "the intervals of order statistics and of the bootstrap disagree"
    return msgspec.structs.replace(q, bootstrap_low=low, bootstrap_high=high, note=note)


def autocorrelation(cells: Cells) -> float:
    """Lag-1 autocorrelation of the samples, never below 0.

    The last sample of a cell and the first of the next are no neighbours, so their pair is left
    out; the mean is that of all cells, so that a difference between cells counts as dependence
    within them. An infinite sample counts as twice the largest finite one: failures that come in
    a row are dependent too.
    """
    series = [np.asarray(cell, dtype=np.float64) for cell in cells if len(cell)]
    n_pairs = sum(len(cell) - 1 for cell in series)
    if n_pairs < 2:
        return 0.0
    values = np.concatenate(series)
    finite = values[np.isfinite(values)]
    top = 2 * float(np.abs(finite).max()) if len(finite) else 1.0
    mean = float(np.minimum(values, top).mean())
    centred = [np.minimum(cell, top) - mean for cell in series]
    variance = sum(float(cell @ cell) for cell in centred) / len(values)
    if variance <= 1e-24 * max(1.0, mean * mean):  # all the same, but for rounding
        return 0.0
    covariance = sum(float(cell[1:] @ cell[:-1]) for cell in centred) / n_pairs
    return min(1.0, max(0.0, covariance / variance))


def effective_size(cells: Cells, marks: Cells | None = None) -> int:
    """Independent samples that carry as much as these, never above n and never below 1 (0 for
    no samples): the lesser of `n (1 - r) / (1 + r)`, `r` the lag-1 autocorrelation, and
    `n / design_effect` of `marks`, which say of each sample whether it lies below the percentile
    (None: the samples are such marks themselves).
    """
    n = sum(len(cell) for cell in cells)
    r = autocorrelation(cells)
    least = min(n * (1 - r) / (1 + r), n / design_effect(cells if marks is None else marks))
    return max(min(n, 1), math.floor(least))


def design_effect(cells: Cells) -> float:
    """How many times as many samples are needed because cells differ; 1 below `MIN_CELLS`.

    `(1 + (m - 1) ICC) (t / z)^2`, at least 1: ICC is the intraclass correlation of a one-way
    analysis of variance over the cells, `m` their size, and `t / z` how much wider Student's t is
    than the normal distribution, as the ICC is known from so few cells (Kish; Korn & Graubard).
    """
    series = [np.asarray(cell, dtype=np.float64) for cell in cells if len(cell)]
    k, n = len(series), sum(map(len, series))
    if k < MIN_CELLS or n <= k:
        return 1.0
    m = (n - sum(len(cell) ** 2 for cell in series) / n) / (k - 1)
    mean = math.fsum(float(cell.sum()) for cell in series) / n
    between = math.fsum(len(cell) * float(cell.mean() - mean) ** 2 for cell in series) / (k - 1)
    within = math.fsum(len(cell) * float(cell.var()) for cell in series) / (n - k)
    if between <= 1e-24 * max(1.0, mean * mean):
        return 1.0
    icc = (between - within) / (between + (m - 1) * within)
    return max(1.0, (1 + (m - 1) * icc) * _t_over_z(k - 1) ** 2)


@lru_cache(maxsize=256)
def _t_over_z(df: int) -> float:
    upper = (1 + CONFIDENCE) / 2
    return t_quantile(upper, df) / NormalDist().inv_cdf(upper)


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
