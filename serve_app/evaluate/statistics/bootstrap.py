"""Bootstrap of whole blocks: what belongs together (a document, a window) is drawn together.

`BCa` intervals (Efron 1987, JASA 82:171) of ratios of sums, which means, perplexities and their
ratios are; percentile intervals of quantiles. The draws are seeded: a report made again is the
same, and figures of the same blocks share their draws.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 10_000
QUANTILE_RESAMPLES = 1_000
CONFIDENCE = 0.95
_NORMAL = NormalDist()
_CHUNK = 4_000_000
"""Values that are drawn at a time: bounds memory."""


def bca_interval(
    estimate: float, replicates: Values, jackknife: Values, confidence: float = CONFIDENCE
) -> Interval | None:
    """Bias-corrected, accelerated interval of `estimate`.

    `replicates`: of the resamples; `jackknife`: with each block left out. None where they say
    nothing: fewer than two blocks, or values that are not finite.
    """
    if len(jackknife) < 2 or not np.isfinite(replicates).all() or not np.isfinite(jackknife).all():
        return None
    if np.ptp(replicates) == 0:
        return float(replicates[0]), float(replicates[0])
    # Replicates equal to the estimate count half, as scipy does: few distinct values are common.
    below = float(np.mean(replicates < estimate) + np.mean(replicates <= estimate)) / 2
    below = min(max(below, 0.5 / len(replicates)), 1 - 0.5 / len(replicates))
    bias = _NORMAL.inv_cdf(below)
    from_mean = jackknife.mean() - jackknife
    squares = float((from_mean**2).sum())
    skew = float((from_mean**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + _NORMAL.inv_cdf(tail)
        ends.append(_NORMAL.cdf(bias + z / (1 - skew * z)))
    low, high = np.quantile(replicates, ends)
    return float(low), float(high)


def ratio_interval(
    numerators: Values,
    denominators: Values,
    transform: Callable[[Values], Values] = lambda ratio: ratio,
    *,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Interval | None:
    """BCa interval of `transform(sum of numerators / sum of denominators)`, one of each a block.

    `transform` is monotonic and works on arrays. None for fewer than two blocks.
    """
    n = len(numerators)
    if n < 2:
        return None
    both = np.stack([numerators, denominators], axis=1)
    sums = _resampled(both, seed, n_resamples)
    total = both.sum(axis=0)
    rest = total - both
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = transform(np.array([total[0] / total[1]]))[0]
        replicates, jackknife = (transform(part[:, 0] / part[:, 1]) for part in (sums, rest))
    return bca_interval(float(estimate), replicates, jackknife)


def mean_interval(
    values: Values,
    clusters: NDArray[np.int_] | None = None,
    *,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Interval | None:
    """BCa interval of the mean; values of a cluster are drawn together."""
    if clusters is None:
        ones = np.ones(len(values))
        return ratio_interval(values, ones, seed=seed, n_resamples=n_resamples)
    _, member = np.unique(clusters, return_inverse=True)
    sums, sizes = np.bincount(member, weights=values), np.bincount(member).astype(np.float64)
    return ratio_interval(sums.astype(np.float64), sizes, seed=seed, n_resamples=n_resamples)


def quantile_interval(
    values: Values,
    blocks: NDArray[np.int_],
    q: float,
    *,
    seed: int = 0,
    n_resamples: int = QUANTILE_RESAMPLES,
) -> Interval | None:
    """Percentile interval of the `q` quantile (the smallest value with a share q at or below it).

    None for fewer than two blocks.
    """
    replicates = quantile_replicates(values, blocks, q, seed=seed, n_resamples=n_resamples)
    if replicates is None:
        return None
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def quantile_replicates(
    values: Values,
    blocks: NDArray[np.int_],
    q: float,
    *,
    seed: int = 0,
    n_resamples: int = QUANTILE_RESAMPLES,
) -> Values | None:
    """The quantile in each resample of blocks; the same blocks and seed give the same draws."""
    _, member = np.unique(blocks, return_inverse=True)
    n_blocks = int(member.max()) + 1 if len(member) else 0
    if n_blocks < 2:
        return None
    order = np.argsort(values, kind="stable")
    ordered, of_block = values[order], member[order]
    rng = np.random.default_rng(seed)
    found: list[Values] = []
    step = max(1, _CHUNK // len(values))
    for first in range(0, n_resamples, step):
        rows = min(step, n_resamples - first)
        counts = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=rows)
        up_to = np.cumsum(counts[:, of_block], axis=1)
        wanted = np.ceil(np.round(q * up_to[:, -1:], 9))
        found.append(ordered[(up_to < wanted).sum(axis=1)])
    return np.concatenate(found)


def quantile_of(values: Values, q: float) -> float:
    """The smallest value with a share `q` at or below it; at least one value."""
    rank = max(1, math.ceil(round(q * len(values), 9)))
    return float(np.partition(values, rank - 1)[rank - 1])


def _resampled(blocks: Values, seed: int, n_resamples: int) -> Values:
    """Column sums of each resample: blocks drawn with replacement, as many as there are."""
    rng = np.random.default_rng(seed)
    n = len(blocks)
    found = []
    step = max(1, _CHUNK // n)
    for first in range(0, n_resamples, step):
        rows = min(step, n_resamples - first)
        drawn = rng.integers(0, n, size=(rows, n))
        found.append(np.stack([column[drawn].sum(axis=1) for column in blocks.T], axis=1))
    return np.concatenate(found)
