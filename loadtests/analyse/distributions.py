"""The few distributions that verdicts need, without scipy: beta, Student's t, hypergeometric.

scipy is a development dependency: the tests hold every function here against it.
"""

import math
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95
_TINY = 1e-300


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function `I_x(a, b)`, for `a`, `b` > 0 and 0 <= x <= 1."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - beta_cdf(1 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """`1 + d1 / (1 + d2 / (1 + ...))` of Abramowitz & Stegun 26.5.8, by Lentz's method."""
    value, above, below = 1.0, 1.0, 0.0
    for i in range(1, 100_000):
        m = i // 2
        if i % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / ((1 + d * below) or _TINY)
        above = (1 + d / above) or _TINY
        value *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return value


def beta_quantile(q: float, a: float, b: float) -> float:
    """The `x` with `beta_cdf(x, a, b) == q`."""
    return _bisect(lambda x: beta_cdf(x, a, b), q, 0.0, 1.0)


def t_cdf(t: float, df: float) -> float:
    """Student's t with `df` degrees of freedom, which need not be whole."""
    tail = beta_cdf(df / (df + t * t), df / 2, 0.5) / 2
    return tail if t < 0 else 1 - tail


def t_two_sided(t: float, df: float) -> float:
    """Probability of a value at least as far from 0 as `t`; exact where `1 - t_cdf` cancels."""
    return 0.0 if math.isinf(t) else beta_cdf(df / (df + t * t), df / 2, 0.5)


def t_quantile(q: float, df: float) -> float:
    """The `t` with `t_cdf(t, df) == q`, for 0 < q < 1."""
    if q < 0.5:
        return -t_quantile(1 - q, df)
    high = 2.0
    while t_cdf(high, df) < q:
        high *= 2
    return _bisect(lambda t: t_cdf(t, df), q, 0.0, high)


def clopper_pearson(k: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided interval of a share that was seen as `k` of `n`, which need not be whole."""
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, k, n - k + 1) if k > 0 else 0.0
    high = beta_quantile(1 - tail, k + 1, n - k) if k < n else 1.0
    return low, high


def fisher_exact(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    """Two-sided p-value that `k_a` of `n_a` and `k_b` of `n_b` are of one share (Fisher)."""
    k = k_a + k_b
    possible = np.arange(max(0, k - n_b), min(k, n_a) + 1)
    log_p = np.array([_log_choose(n_a, i) + _log_choose(n_b, k - i) for i in possible.tolist()])
    weights = np.exp(log_p - log_p.max())
    seen = weights[k_a - int(possible[0])]
    return float(min(1.0, weights[weights <= seen * (1 + 1e-9)].sum() / weights.sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _bisect(rises: Callable[[float], float], target: float, low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if rises(middle) < target else (low, middle)
    return (low + high) / 2
