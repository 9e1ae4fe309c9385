"""Student's t for integer degrees of freedom, in the standard library's floats."""

import math
from statistics import NormalDist

_NORMAL = NormalDist()
NORMAL_FROM = 1000
"""Degrees of freedom from which the normal distribution is taken: 0.05 is 0.0501 there."""
_LEAST = 1e-15
"""Of a tail's probability: what 1 - A below cannot tell from 0."""


def upper_tail(t: float, df: int) -> float:
    """P(T > t) for t >= 0 and df >= 1 degrees of freedom.

    By the finite sums of Abramowitz and Stegun, 26.7.3 (odd df) and 26.7.4 (even df).
    """
    if df >= NORMAL_FROM:
        return _NORMAL.cdf(-t)
    angle = math.atan2(t, math.sqrt(df))
    cosine, is_odd = math.cos(angle), df % 2
    term = total = cosine if is_odd else 1.0
    for k in range(2 + is_odd, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if is_odd:
        within = (angle + math.sin(angle) * (total if df > 1 else 0.0)) * 2 / math.pi
    else:
        within = math.sin(angle) * total
    return max(_LEAST, (1 - within) / 2)


def normal_score(t: float, df: int) -> float:
    """The standard normal's value with the tail that `t` has: nearer to 0, for few units."""
    if df >= NORMAL_FROM:
        return t
    return math.copysign(_NORMAL.inv_cdf(1 - upper_tail(abs(t), df)), t)


def t_score(z: float, df: int) -> float:
    """The t with the tail that the standard normal's `z` has: `normal_score` the other way."""
    if df >= NORMAL_FROM or z == 0:
        return z
    low, high = 0.0, 1.0
    while normal_score(high, df) < abs(z) and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if normal_score(middle, df) < abs(z) else (low, middle)
    return math.copysign((low + high) / 2, z)
