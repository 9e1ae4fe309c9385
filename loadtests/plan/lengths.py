"""How long prompts and answers are: a mixture of traffic classes with lognormal lengths."""

import itertools
import math
import random
from collections.abc import Sequence

from loadtests.campaign.workload import Lengths, TrafficClass


class Mixture:
    """Traffic classes, drawn by their weights."""

    def __init__(self, classes: Sequence[TrafficClass]) -> None:
        self._classes = classes
        self._ends = list(itertools.accumulate(each.weight for each in classes))

    def draw(self, rng: random.Random) -> TrafficClass:
        """One class."""
        return rng.choices(self._classes, cum_weights=self._ends)[0]


def draw_lengths(of: TrafficClass, rng: random.Random) -> tuple[int, int]:
    """Input and output length in tokens.

    A Gaussian copula: the logarithms come from two standard normal numbers that correlate by
    `of.correlation` (before the cut to `[min, max]`).
    """
    rho = of.correlation
    z = rng.gauss(0.0, 1.0)
    own = rng.gauss(0.0, 1.0)
    z_output = rho * z + math.sqrt(1.0 - rho * rho) * own
    return _tokens(of.input_tokens, z), _tokens(of.output_tokens, z_output)


def _tokens(lengths: Lengths, z: float) -> int:
    # cut before exp, which a wide sigma would send beyond the largest float
    log = min(math.log(lengths.median) + lengths.sigma * z, math.log(lengths.max))
    return min(max(round(math.exp(log)), lengths.min), lengths.max)
