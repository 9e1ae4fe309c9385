"""When requests arrive within one segment of a cell: pure, seeded, with an exact count.

A cell has three segments, warm-up, measured window and cool-down. Each is drawn for itself, so
that the window of every cell of a stage holds the same number of requests.
"""

import itertools
import math
import random

from loadtests.campaign.stages import (
    ConcurrencyStage,
    ConstantStage,
    GammaStage,
    LoadStage,
    PoissonStage,
    RampStage,
    TraceStage,
)
from loadtests.plan.request import Phase


def arrivals(
    stage: LoadStage, phase: Phase, length_s: float, rng: random.Random
) -> tuple[float, ...]:
    """Seconds of the arrivals of one segment in `[0, length_s)`, ascending.

    There are `round(rate * length_s)` of them. Raises TypeError for a stage whose arrivals are
    not drawn: a trace has its own, a closed loop has none.
    """
    match stage:
        case ConstantStage():
            return constant(stage.rate_per_s, length_s)
        case PoissonStage():
            return poisson(stage.rate_per_s, length_s, rng)
        case GammaStage():
            return gamma(stage.rate_per_s, length_s, stage.burstiness, rng)
        case RampStage():
            if phase == "measured":
                return ramp(stage.from_per_s, stage.to_per_s, length_s, rng)
            level = stage.from_per_s if phase == "warmup" else stage.to_per_s
            return poisson(level, length_s, rng)
        case TraceStage() | ConcurrencyStage():
            raise TypeError(f"stage {stage.name}: the arrivals of {stage.kind} are not drawn")


def constant(rate_per_s: float, length_s: float) -> tuple[float, ...]:
    """Evenly spaced, the first at 0."""
    return tuple(i / rate_per_s for i in range(round(rate_per_s * length_s)))


def poisson(rate_per_s: float, length_s: float, rng: random.Random) -> tuple[float, ...]:
    """Independent uniform times: a Poisson process conditioned on its count (Kingman, Poisson
    Processes, 2.4). The gaps are bursty and the offered rate is exact.
    """
    n = round(rate_per_s * length_s)
    return tuple(sorted(_before(length_s, rng.random() * length_s) for _ in range(n)))


def gamma(
    rate_per_s: float, length_s: float, burstiness: float, rng: random.Random
) -> tuple[float, ...]:
    """Gaps of a gamma distribution with shape `burstiness`, scaled so that n + 1 gaps fill the
    segment. With shape 1 that is the Poisson process given its count (Devroye, Non-Uniform Random
    Variate Generation, V.2).
    """
    n = round(rate_per_s * length_s)
    ends = list(itertools.accumulate(rng.gammavariate(burstiness, 1.0) for _ in range(n + 1)))
    scale = length_s / (ends[-1] or 1.0)  # gaps of a tiny shape may all be 0 in floating point
    return tuple(_before(length_s, end * scale) for end in ends[:-1])


def ramp(
    from_per_s: float, to_per_s: float, length_s: float, rng: random.Random
) -> tuple[float, ...]:
    """A Poisson process of linear rate given its count: independent times whose cumulative
    distribution is the integral of the rate. Its inverse at u, with a and b for the rates, is
    `length * (a + b) u / (a + sqrt(a^2 + (b^2 - a^2) u))`.
    """
    a, b = from_per_s, to_per_s
    n = round((a + b) / 2 * length_s)
    times = []
    for _ in range(n):
        u = rng.random()
        denominator = a + math.sqrt(a * a + (b * b - a * a) * u)
        share = (a + b) * u / denominator if denominator else 0.0
        times.append(_before(length_s, share * length_s))
    return tuple(sorted(times))


def _before(length_s: float, time_s: float) -> float:
    """`time_s`, but inside the segment where rounding put it on the end."""
    return min(time_s, math.nextafter(length_s, 0.0))
