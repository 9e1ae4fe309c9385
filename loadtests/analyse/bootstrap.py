"""Circular block bootstrap of percentiles: intervals that keep the order of the samples.

Neighbouring requests wait in the same queue, so they are not independent. Blocks of `block_length`
neighbours are drawn with replacement, round the end of the series to its start, until there are
as many samples again (Politis & Romano 1992); the interval is the middle 95 % of what the
percentile is in `RESAMPLES` such series. The draws are seeded: a report made again is the same.
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
    places = np.sort(np.concatenate(found), axis=0)
    cut = math.floor((1 - CONFIDENCE) / 2 * n_resamples)
    ends = {
        k: (float(ordered[places[cut, i]]), float(ordered[places[n_resamples - 1 - cut, i]]))
        for i, k in enumerate(kth)
    }
    return [ends[rank - 1] for rank in ranks]
