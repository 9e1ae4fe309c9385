"""How many requests hang together: the design effect of what was seen, by successive blocks.

The variance of block means over what it would be if requests were independent (Kish 1965); taken
from differences of successive blocks (von Neumann, Annals of Math. Stat. 12:367, 1941), so that a
slow drift of the load is not mistaken for dependence.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from serve_app.rollout.betting import Values

BLOCK = 50
"""Pairs in a block. What hangs together over longer stretches is seen in part only."""
PRIOR, PRIOR_BLOCKS = 3.0, 4
"""What is taken for it before anything is seen, and how many blocks that is worth: a stall within
the first blocks must not pass for many bad requests."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over blocks of one arm, or of the differences of pairs."""

    n: int = 0
    """Differences of blocks."""
    observed: float = 0.0
    """Sum of half the squared differences of successive block means."""
    independent: float = 0.0
    """What that sum would be on average if units were independent."""
    last_mean: float | None = None
    last_variance: float = 0.0

    def after(self, means: Values, variances: Values) -> "Spread":
        """With these blocks more: their means, and the variances that those would have if units
        were independent."""
        if not len(means):
            return self
        if self.last_mean is not None:
            means = np.concatenate([[self.last_mean], means])
            variances = np.concatenate([[self.last_variance], variances])
        return Spread(
            n=self.n + len(means) - 1,
            observed=self.observed + float((np.diff(means) ** 2).sum()) / 2,
            independent=self.independent + float((variances[1:] + variances[:-1]).sum()) / 2,
            last_mean=float(means[-1]),
            last_variance=float(variances[-1]),
        )


def design_effect(spreads: Iterable[Spread]) -> float:
    """Of all of them together, drawn towards `PRIOR` while little was seen; at least 1."""
    n, observed, independent = 0, 0.0, 0.0
    for spread in spreads:
        n += spread.n
        observed += spread.observed
        independent += spread.independent
    measured = observed / independent if independent > 0 else 1.0
    return max(1.0, (PRIOR * PRIOR_BLOCKS + measured * n) / (PRIOR_BLOCKS + n))
