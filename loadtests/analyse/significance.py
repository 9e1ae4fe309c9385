"""Tests on differences of blocks: intervals of Student's t, signs, and Holm's correction."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from loadtests.analyse.distributions import CONFIDENCE, t_quantile, t_two_sided

ALPHA = 1 - CONFIDENCE
MAX_EXACT = 16
"""Blocks up to which all sign patterns are tried; beyond, `SAMPLED` seeded ones."""
SAMPLED = 20_000


class Effect(msgspec.Struct, frozen=True):
    """A difference, or the ratio that it is the logarithm of, with its 95 % interval and
    two-sided p-value; None where there are too few blocks.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    def exp(self) -> "Effect":
        """The ratio, of a difference of logarithms."""
        value, low, high = (
            None if end is None else math.exp(end) for end in (self.value, self.low, self.high)
        )
        return Effect(value, low, high, self.p_value)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of one or more values."""
    return math.fsum(values) / len(values)


def paired(differences: Sequence[float]) -> Effect:
    """The mean of the differences within each block: Student's t, n - 1 degrees of freedom."""
    n = len(differences)
    if n < 2:
        return Effect(mean(differences))
    return _by_t(mean(differences), math.sqrt(_variance(differences) / n), n - 1)


def welch(of: Sequence[float], to: Sequence[float]) -> Effect:
    """The difference of the means of blocks that are not paired (Welch's t)."""
    centre = mean(of) - mean(to)
    if min(len(of), len(to)) < 2:
        return Effect(centre)
    parts = [(_variance(values) / len(values), len(values) - 1) for values in (of, to)]
    total = sum(part for part, _ in parts)
    if total == 0:
        return _by_t(centre, 0.0, 1)
    df = total**2 / sum(part**2 / free for part, free in parts)
    return _by_t(centre, math.sqrt(total), df)


def _by_t(centre: float, error: float, df: float) -> Effect:
    half = t_quantile(1 - ALPHA / 2, df) * error
    is_level = abs(centre) < 1e-12
    t = 0.0 if is_level else centre / error if error > 0 else math.inf
    return Effect(centre, centre - half, centre + half, t_two_sided(t, df))


def _variance(values: Sequence[float]) -> float:
    """Sample variance; 0 where the values differ by no more than rounding."""
    centre = mean(values)
    total = math.fsum((value - centre) ** 2 for value in values)
    return 0.0 if total < 1e-24 else total / (len(values) - 1)


def sign_test_p(n_less: int, n_more: int) -> float:
    """Two-sided p-value that a block is as likely to lie to either side (exact binomial).

    Below 5 % from 6 blocks on, if all lie to one side.
    """
    n = n_less + n_more
    tail = sum(math.comb(n, k) for k in range(min(n_less, n_more) + 1))
    return min(1.0, math.ldexp(tail, 1 - n))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value that the differences lie evenly about 0, whatever their distribution.

    The share of all `2^n` patterns of signs whose mean is as far from 0 as the one seen. With 5
    blocks the least possible value is 2/32: look at it beside the t test, not in its place.
    """
    n = len(differences)
    values = np.asarray(differences, dtype=np.float64)
    seen = abs(float(values.sum())) * (1 - 1e-9)
    if n <= MAX_EXACT:
        bits = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * bits) @ values) >= seen).mean())
    rng = np.random.default_rng(n)
    flips = rng.integers(0, 2, size=(SAMPLED, n))
    extreme = int((np.abs((1 - 2 * flips) @ values) >= seen).sum())
    return (extreme + 1) / (SAMPLED + 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the order given; None stays None and counts for nothing."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for done, (p, i) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - done)))
        adjusted[i] = least
    return adjusted
