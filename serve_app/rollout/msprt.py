"""Is the candidate slower on average? A mixture sequential probability ratio test of log ratios.

Of paired log ratios d with known variance s^2 the mSPRT with a normal mixture of variance t^2 is

    L_n = sqrt(s^2 / (s^2 + n t^2)) exp(n^2 t^2 m^2 / (2 s^2 (s^2 + n t^2)))

(Robbins 1970; Johari, Koomen, Pekelis & Walsh, Operations Research 70:1806, 2022), m the mean of
d minus the mean under the null. The variance is not known here, and to put an estimate in its
place errs too often at the start. With the right Haar prior on s in both hypotheses, and t = s / c,
it drops out, and what is left is an e-process for normal d of any variance (Lai 1976; Wang &
Ramdas, arXiv 2310.03722):

    G_n = sqrt(c^2 / (n + c^2)) (V / (V - S^2 / (n + c^2)))^(n / 2)

with S the sum and V the sum of squares of d minus the null's mean. The least over all means up to
the null's is an e-process for "at most" (each of them is, for its own mean).

The log of a latency has light tails even where the latency's own are heavy; that is what carries
this over from normal values. Ratios that depend on each other count for fewer: n, S and V are then
divided by their design effect (`dependence`), which keeps mean and variance.
"""

import math

TYPICAL_EFFECT = 0.3
"""1 / c: the difference of means, in standard deviations, at which the test is sharpest."""
_C2 = 1 / TYPICAL_EFFECT**2


def log_msprt(n: float, total: float, squares: float, null: float = 0.0) -> float:
    """Log of G_n against a mean of `null`: both sides; n values with this sum and sum of squares.

    0 for n < 2, where one value says nothing of its spread.
    """
    if n < 2:
        return 0.0
    s = total - n * null
    v = squares - 2 * null * total + n * null * null
    spread = v - s * s / n
    if spread <= 1e-12 * v:  # all alike: no clock tells so, and no variance can be had of it
        return 0.0
    ratio = s * s / ((n + _C2) * v)
    return 0.5 * math.log(_C2 / (n + _C2)) - 0.5 * n * math.log1p(-ratio)


def log_above(n: float, total: float, squares: float, null: float) -> float:
    """Log of the e-value against "the mean is at most `null`"."""
    if n < 2:
        return 0.0
    return log_msprt(n, total, squares, null if total > n * null else total / n)


def log_below(n: float, total: float, squares: float, null: float) -> float:
    """Log of the e-value against "the mean is at least `null`"."""
    return log_above(n, -total, squares, -null)
