"""Is a share larger in the candidate than in the baseline? Betting, with no model of the traffic.

A bettor starts with 1 and stakes, before each unit, a part `b` of what it has on "the candidate is
worse": it then has `1 + b y` times as much, where `y` in [-1, 1] is by how much the candidate was
worse there. As long as `y` is not positive on average, given the past, no bettor's money grows on
average, and it ever reaches 1/alpha with probability at most alpha (Ville 1939; Waudby-Smith &
Ramdas, JRSS-B 86:1, 2024, arXiv 2010.09686; Shafer, JRSS-A 184:407, 2021). What it has is the
e-value. Nothing is said of the distribution, of drift common to both, or of when one looks.

A unit is a pair of requests, or one request of the smaller arm beside its part of the larger arm's
(`matched`): a two-sample test with unequal arms (Turner, Ly & Gruenwald, arXiv 2106.02693, bet on
such blocks). For pairs of yes and no `1 + b` and `1 - b` are the likelihood ratio of the sign test
on those pairs that differ, so that nothing is lost against it.

Requests that belong together (a session, a stalled engine) are not so many units. The product of
their factors raised to 1/d is an e-value still if at most d of them depend on each other, however
they do: E[prod f^(1/d)] <= prod E[f]^(1/d) (Hoelder's inequality). With d the design effect, which
is smaller, it is one to second order in the stakes: a sum of variance d V instead of V is then bet
on as on n / d units.
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

STAKES: Values = np.geomspace(0.01, 0.98, 20)
"""Bettors that differ in `b` alone; their mean is an e-value, as each of them is."""


MOST_GAIN = float(np.log(4))
"""What a bettor may gain in one look: however bad it is, one look does not decide, as all of it may
have one cause. An e-value that is cut at a bound is one still."""


def excess(candidate: Values, baseline: Values, shift: float) -> Values:
    """By how much the candidate's shares exceed the baseline's plus `shift`, scaled into [-1, 1].

    Both in [0, 1], one entry a unit; `shift` in (-1, 1).
    """
    scaled: Values = (candidate - baseline - shift) / (1 + abs(shift))
    return scaled


def log_growth(scores: Values, dependence: float = 1.0) -> Values:
    """What the log of each bettor's money gains in a look with these scores; shape of STAKES.

    Scores in [-1, 1]; negate them to bet that the candidate is better. `dependence` >= 1: how many
    units may depend on each other. At most MOST_GAIN.
    """
    values, counts = np.unique(scores, return_counts=True)  # few differ
    gains: Values = counts @ np.log1p(values[:, None] * STAKES) / dependence
    return np.minimum(gains, MOST_GAIN)


def log_mean(log_values: Values) -> Values:
    """Log of the mean over the last axis of numbers given by their logs."""
    top = log_values.max(axis=-1, keepdims=True)
    sums: Values = np.exp(log_values - top).sum(axis=-1)
    means: Values = top[..., 0] + np.log(sums / log_values.shape[-1])
    return means


def matched(
    candidate: tuple[int, int], baseline: tuple[int, int], rng: np.random.Generator
) -> tuple[Values, Values]:
    """Units of two arms of one window, each given as (requests with the property, requests).

    Each request of the smaller arm goes with an equal part of the larger arm's, drawn at random;
    what is left over is not used. Returns the shares of the candidate and of the baseline, one
    entry a unit; none where one arm has no request.
    """
    if candidate[1] > baseline[1]:
        base, cand = matched(baseline, candidate, rng)
        return cand, base
    (k_small, n_small), (k_large, n_large) = candidate, baseline
    if not n_small:
        return np.empty(0), np.empty(0)
    size = n_large // n_small
    parts = [*[size] * n_small, n_large - size * n_small]
    drawn = rng.multivariate_hypergeometric(parts, k_large, method="marginals")[:-1]
    small = np.zeros(n_small)
    small[:k_small] = 1.0  # parts are drawn alike: which request goes with which does not matter
    return small, drawn / size
