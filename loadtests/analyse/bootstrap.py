"""Bootstrap of percentiles: intervals that keep together what belongs together.

Neighbouring requests wait in the same queue, and all requests of a cell meet the machine in the
same mood, so they are not independent. Where there are cells enough, whole cells are drawn with
replacement. Else blocks of `block_length` neighbours are, round the end of the series to its start,
until there are as many samples again (Politis & Romano 1992). The interval is the middle 95 % of
what the percentile is in `RESAMPLES` such series. The draws are seeded: a report made again is the
same.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtests.analyse.distributions import CONFIDENCE

RESAMPLES = 1000
CHUNK = 4_000_000
"""Samples that are drawn at a time: bounds the memory that a long run needs."""


def block_length(n: int, autocorrelation: float) -> int:
    """`(1.5 g^2 n)^(1/3)` with `g = 2 r / (1 - r^2)`, at most `3 sqrt(n)` and `n / 3`, at least 1.

    The length that is best for the mean of a first-order autoregressive series of lag-1
    autocorrelation `r` (Politis & White 2004, corrected by Patton, Politis & White 2009).
    """
    r = min(max(autocorrelation, 0.0), 0.999)
    best = math.cbrt(1.5 * (2 * r / (1 - r * r)) ** 2 * n)
    return max(1, math.ceil(min(best, 3 * math.sqrt(n), n / 3)))


def percentile_intervals(
    samples: NDArray[np.float64],
    ranks: Sequence[int],
    length: int,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """95 % interval of the `rank`-th smallest sample (from 1), for each of `ranks`.

    `samples` in the order in which they were taken, at least one; infinite ones are allowed.
    Blocks run across the borders of cells: with blocks far shorter than cells that hardly counts.
    """
    n = len(samples)
    rng = np.random.default_rng(seed)
    order = np.argsort(samples, kind="stable")
    ordered = samples[order]
    place = np.empty(n, dtype=np.uint16 if n <= 1 << 16 else np.uint32)
    place[order] = np.arange(n)  # small whole numbers are quicker to partition than floats
    ring = np.concatenate((place, place[: length - 1]))
    kth = sorted({rank - 1 for rank in ranks})
    n_blocks = math.ceil(n / length)
    within = np.arange(length)
    found = []
    step = max(1, CHUNK // n)
    for first in range(0, n_resamples, step):
        rows = min(step, n_resamples - first)
        starts = rng.integers(0, n, size=(rows, n_blocks))
        drawn = ring[(starts[:, :, None] + within).reshape(rows, -1)[:, :n]]
        found.append(np.partition(drawn, kth, axis=1)[:, kth])
    ends = dict(zip(kth, _middle(ordered, np.concatenate(found)), strict=True))
    return [ends[rank - 1] for rank in ranks]


def intervals_of_cells(
    cells: Sequence[NDArray[np.float64]],
    percentiles: Sequence[float],
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """95 % interval of each percentile, by whole cells: one less than there are, for as many
    would vary too little (McCarthy & Snowden 1985).

    Two cells or more, none empty; infinite samples are allowed. Of so few cells the middle 95 %
    is a little narrow: with 6 it held the true percentile in 83 to 92 % of simulated runs.
    """
    sizes = np.array([len(cell) for cell in cells])
    samples = np.concatenate(cells)
    order = np.argsort(samples, kind="stable")
    is_of = np.repeat(np.arange(len(cells)), sizes)[order][:, None] == np.arange(len(cells))
    up_to = np.cumsum(is_of, axis=0, dtype=np.float64)
    """Samples of each cell among the smallest ones, by how many these are."""
    evenly = np.full(len(cells), 1 / len(cells))
    times = np.random.default_rng(seed).multinomial(len(cells) - 1, evenly, size=n_resamples)
    found = []
    step = max(1, CHUNK // len(samples))
    for some in (times[first : first + step] for first in range(0, n_resamples, step)):
        n_up_to, n = up_to @ some.T, some @ sizes
        wanted = [np.maximum(1, np.ceil(np.round(p * n, 9))) for p in percentiles]
        found.append(np.stack([(n_up_to < rank).sum(axis=0) for rank in wanted], axis=1))
    return _middle(samples[order], np.concatenate(found))


def _middle(ordered: NDArray[np.float64], places: NDArray[np.int_]) -> list[tuple[float, float]]:
    """For each column of `places` the ends of the middle 95 % of what stands there."""
    places = np.sort(places, axis=0)
    cut = math.floor((1 - CONFIDENCE) / 2 * len(places))
    return [
        (float(ordered[low]), float(ordered[high]))
        for low, high in zip(places[cut], places[len(places) - 1 - cut], strict=True)
    ]
