"""Does the candidate keep a limit, whatever the baseline does? A Beta mixture of likelihood ratios.

H0: at most a share p0 of requests violates the limit. The e-value is

    E_n = int_{p > p0} p^k (1 - p)^(n - k) dBeta(p; a, b) / (p0^k (1 - p0)^(n - k))

with the Beta distribution cut off below p0 (Robbins 1970; the Kelly mixture of Waudby-Smith &
Ramdas, arXiv 2010.09686). The violations of a P99 limit tested against p0 = 1 % are a test of the
P99. The integral is taken as a sum over nodes: each node's likelihood ratio is an e-process by
itself, so the sum is one whatever the weights; the grid costs power, never validity.

This judges the candidate alone: a busy hour that slows both arms counts against it.
"""

import math

import numpy as np

from serve_app.rollout.betting import Values, log_mean

NODES = 64


def log_breached(violations: int, n: int, p0: float, dependence: float = 1.0) -> float:
    """Log of the e-value against "at most p0 violate": large where the limit is broken.

    `violations` of `n` requests, 0 < p0 < 1; `dependence` as in `betting`.
    """
    return _log_mixture(violations, n, p0, _above(p0), dependence)


def log_kept(violations: int, n: int, p0: float, dependence: float = 1.0) -> float:
    """Log of the e-value against "at least p0 violate": large where the limit is kept."""
    return _log_mixture(violations, n, p0, p0 * _middles(), dependence)


def _above(p0: float) -> Values:
    """Nodes in (p0, 1): even in the square root, as Beta(1/2, 1)'s quantiles are."""
    low = math.sqrt(p0)
    nodes: Values = (low + (1 - low) * _middles()) ** 2
    return nodes


def _middles() -> Values:
    return (np.arange(NODES) + 0.5) / NODES


def _log_mixture(k: int, n: int, p0: float, nodes: Values, dependence: float) -> float:
    logs = k * np.log(nodes / p0) + (n - k) * (np.log1p(-nodes) - math.log1p(-p0))
    return float(log_mean(logs / dependence))
