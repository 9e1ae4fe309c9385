"""Shares, and two variants' right and wrong answers on the same items."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""


def wilson_interval(correct: int, n: int, z: float = Z_95) -> tuple[float, float] | None:
    """Score interval of a binomial share (Wilson 1927, JASA 22:209); None for n = 0."""
    if n == 0:
        return None
    share, spread = correct / n, z * z / n
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # Rounding leaves 1e-17 where the bound is exact.
    return (0.0 if correct == 0 else low, 1.0 if correct == n else high)


@dataclass(frozen=True)
class Discordance:
    """`n` items, of which `lost` only the first got right, and `gained` only the second."""

    n: int
    lost: int
    gained: int

    @classmethod
    def of(cls, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> "Discordance":
        """Counts of two rows of right (True) and wrong, item by item."""
        if first.shape != second.shape:
            raise ValueError(f"need as many answers of both, have {first.shape}, {second.shape}")
        return cls(len(first), int((first & ~second).sum()), int((~first & second).sum()))

    @property
    def delta(self) -> float:
        """Accuracy of the second minus the first's. Needs n >= 1."""
        return (self.gained - self.lost) / self.n

    @property
    def standard_error(self) -> float:
        """Of `delta`: sqrt(b + c - (b - c)^2 / n) / n (McNemar 1947; Fleiss 1981, 8.1)."""
        difference = self.gained - self.lost
        return math.sqrt(self.lost + self.gained - difference**2 / self.n) / self.n

    @property
    def flips(self) -> float:
        """Share of items that only one got right."""
        return (self.lost + self.gained) / self.n


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p-value: are flips one way as likely as the other? (McNemar 1947, exact.)

    1 where there is no flip.
    """
    n, k = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    log_half = n * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half)
        for i in range(k + 1)
    )
    return min(1.0, 2 * tail)


def minimal_detectable(n: int, flips: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The |delta| that a two-sided paired test of `n` items finds with this power.

    `flips`: share of items that flip, at least one in `n`, since none seen is not none. Normal
    approximation: (z(1 - alpha/2) + z(power)) sqrt(flips / n).
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return z * math.sqrt(max(flips, 1 / n) / n)
