"""Error rate and attainment: the share of one cell, and what the counts alone say of a change.

The blocks decide (Student's t on their shares), for what comes in bursts or differs from block to
block is not independent. The counts are asked besides: a few blocks of a few requests may agree
to the last failure, and t would then be sure of what one failure more would undo.
"""

import math
from collections.abc import Sequence

from loadtests.analyse.distributions import clopper_pearson, fisher_exact
from loadtests.analyse.significance import Effect
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Slo

SHARE_MARGIN = 0.01
"""Shares (attainment, errors) that differ by no more than one percentage point are the same."""

Counts = tuple[int, int]
"""`k` of `n` planned requests."""


def counted(metric: str, cell: WholeCell, slo: Slo | None) -> Counts:
    """Requests of a cell that failed (`error_rate`), or met the SLO (`attainment`)."""
    if metric == "attainment" and slo is not None:
        return sum(cell.passes(slo)), cell.n_planned
    return cell.n_planned - sum(r.error is None for r in cell.measured), cell.n_planned


def pooled(a: Sequence[Counts], b: Sequence[Counts]) -> Effect:
    """The difference B - A of all requests as if each were independent: no finding by itself.

    Newcombe's interval, from the two of Clopper and Pearson; Fisher's p-value.
    """
    (k_a, n_a), (k_b, n_b) = ((sum(k for k, _ in s), sum(n for _, n in s)) for s in (a, b))
    seen_a, seen_b = k_a / n_a, k_b / n_b
    (low_a, high_a), (low_b, high_b) = clopper_pearson(k_a, n_a), clopper_pearson(k_b, n_b)
    return Effect(
        seen_b - seen_a,
        seen_b - seen_a - math.hypot(seen_b - low_b, high_a - seen_a),
        seen_b - seen_a + math.hypot(high_b - seen_b, seen_a - low_a),
        fisher_exact(k_a, n_a, k_b, n_b),
    )
