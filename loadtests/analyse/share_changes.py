"""Error rate and attainment of one run against another's."""

import math
from collections.abc import Sequence

import msgspec

from loadtests.analyse.attainment import share_of
from loadtests.analyse.distributions import fisher_exact
from loadtests.analyse.nouns import Change, RunChange, Share
from loadtests.analyse.significance import ALPHA
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign

SHARE_MARGIN = 0.01
"""Shares (attainment, errors) that differ by no more than one percentage point are the same."""


def compare_shares(
    row: tuple[str, str],
    campaigns: tuple[Campaign, Campaign],
    cells: tuple[Sequence[WholeCell], Sequence[WholeCell]],
) -> list[RunChange]:
    """Error rate, and attainment where both runs had the same SLO; not yet judged."""
    errors = tuple(share_of([_failures(cell) for cell in side]) for side in cells)
    found = [_share_change(row, "error_rate", errors[0], errors[1], cells)]
    slo, other = campaigns[0].slo, campaigns[1].slo
    if slo is not None and slo == other:
        met = [share_of([cell.passes(slo) for cell in side]) for side in cells]
        found.append(_share_change(row, "attainment", met[0], met[1], cells))
    return found


def _failures(cell: WholeCell) -> list[bool]:
    failed = [r.error is not None for r in cell.measured]
    return failed + [True] * (cell.n_planned - len(failed))


def _share_change(
    row: tuple[str, str],
    metric: str,
    a: Share,
    b: Share,
    cells: tuple[Sequence[WholeCell], Sequence[WholeCell]],
) -> RunChange:
    """Newcombe's interval of a difference, on the two Clopper-Pearson ones; Fisher's p-value.

    Both on the effective sample sizes, for failures come in bursts.
    """
    seen_a, seen_b = (each.k / each.n if each.n else math.nan for each in (a, b))
    effect = seen_b - seen_a
    is_known = a.n > 0 and b.n > 0
    counts = [(round((s.n_eff or 0) * s.k / s.n), s.n_eff or 0) if s.n else (0, 0) for s in (a, b)]
    return RunChange(
        stage=row[0],
        variant=row[1],
        metric=metric,
        p=None,
        n_blocks=(len({c.plan.block for c in cells[0]}), len({c.plan.block for c in cells[1]})),
        values=(seen_a, seen_b) if is_known else (None, None),
        kind="difference",
        effect=effect if is_known else None,
        low=effect - math.hypot(seen_b - b.low, a.high - seen_a) if is_known else None,
        high=effect + math.hypot(b.high - seen_b, seen_a - a.low) if is_known else None,
        p_value=fisher_exact(*counts[0], *counts[1]) if is_known else None,
        p_adjusted=None,
        change=Change.INCONCLUSIVE,
        reason="no request was planned",
        rules_out_worse=False,
    )


def judged(each: RunChange, p_adjusted: float | None) -> RunChange:
    """`each`, given its p-value among all that was compared; the rules are those of ratios."""
    low, high, effect = each.low, each.high, each.effect
    if low is None or high is None or effect is None or p_adjusted is None:
        return each
    more_is_better = each.metric == "attainment"
    change = Change.INCONCLUSIVE
    if low >= -SHARE_MARGIN and high <= SHARE_MARGIN:
        change = Change.SAME
    elif (low > 0 or high < 0) and p_adjusted < ALPHA:
        change = Change.BETTER if (effect > 0) == more_is_better else Change.WORSE
    is_far = low >= -SHARE_MARGIN if more_is_better else high <= SHARE_MARGIN
    return msgspec.structs.replace(
        each,
        p_adjusted=p_adjusted,
        change=change,
        reason=f"difference {100 * effect:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}], "
        f"adjusted p {p_adjusted:.2g}",
        rules_out_worse=is_far or change in (Change.BETTER, Change.SAME),
    )
