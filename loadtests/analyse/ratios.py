"""How one thing stands to another in one metric: statistics by block, their ratio, the verdict.

Shares of requests (`nouns.SHARES`) are compared by their difference, all else by its ratio, which
is a difference of logarithms: from there on both are treated alike.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loadtests.analyse.metrics import LATENCIES
from loadtests.analyse.nouns import SHARES, Change
from loadtests.analyse.share_changes import SHARE_MARGIN, Counts, counted, pooled
from loadtests.analyse.significance import (
    ALPHA,
    Effect,
    mean,
    paired,
    sign_flip_p,
    sign_test_p,
    welch,
)
from loadtests.analyse.stats import MIN_SAMPLES, nearest_rank, too_few
from loadtests.analyse.summary import successful, tokens_in_window, with_failed
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Slo

TAIL = 0.99
"""Compared only where every cell has the samples for it."""


class Metric(NamedTuple):
    """What is compared. `p` None: no percentile, but a rate or a share of the cell."""

    name: str
    p: float | None

    @property
    def more_is_better(self) -> bool:
        """Whether a higher value is the better one."""
        return self.name in ("output_tokens_per_s", "attainment")

    @property
    def is_share(self) -> bool:
        """Whether it is compared by its difference, and not by its ratio."""
        return self.name in SHARES

    def same(self, same_within: float) -> tuple[float, float]:
        """Effects between these count as none."""
        if self.is_share:
            return -SHARE_MARGIN, SHARE_MARGIN
        return 1 / (1 + same_within), 1 + same_within

    def __str__(self) -> str:
        return self.name if self.p is None else f"{self.name} P{self.p * 100:g}"


METRICS = (
    Metric("ttft_user_ms", 0.50),
    Metric("ttft_user_ms", 0.95),
    Metric("ttft_user_ms", TAIL),
    Metric("e2e_user_ms", 0.50),
    Metric("e2e_user_ms", 0.95),
    Metric("e2e_user_ms", TAIL),
    Metric("tpot_ms", 0.50),
    Metric("output_tokens_per_s", None),
    Metric("error_rate", None),
    Metric("attainment", None),
)


class Blocks(NamedTuple):
    """One statistic of one variant at one stage, by block: one value per repeat.

    Logarithms, but for shares. A failure-aware percentile that failures reach is infinite; no
    tokens are minus infinity.
    """

    values: dict[int, list[float]]
    lacking: str | None
    """Why a cell has no such value; None: every cell has."""
    counts: tuple[Counts, ...] = ()
    """Of a share: per cell."""


class Found(NamedTuple):
    """What two series of blocks say, before it is known how many comparisons there are."""

    n_blocks: tuple[int, int]
    """Of the baseline and of the other."""
    values: tuple[float | None, float | None]
    """Geometric means (of shares: means), in the same order."""
    effect: Effect | None = None
    """None where there is none; `reason` is then final. No value but a p-value: by signs."""
    p_sign_flip: float | None = None
    reason: str = ""
    signs: tuple[int, int] = (0, 0)
    """Where no ratio can be averaged: blocks in which the other is lower, and higher."""
    pooled: Effect | None = None
    """Of a share: what the counts say, as if all requests were independent."""


def metrics_of(cells: Iterable[WholeCell], slo: Slo | None) -> list[Metric]:
    """What of `METRICS` can be compared with these cells of one stage."""
    has_tail = not lacks_tail(cells)
    return [
        metric
        for metric in METRICS
        if (metric.p != TAIL or has_tail) and (metric.name != "attainment" or slo is not None)
    ]


def lacks_tail(cells: Iterable[WholeCell]) -> str | None:
    """Why P99 is not compared; None where every cell has the samples."""
    return too_few(min((cell.n_planned for cell in cells), default=MIN_SAMPLES[TAIL]), TAIL)


def blocks_of(metric: Metric, cells: Sequence[WholeCell], slo: Slo | None) -> Blocks:
    """The statistic of each cell."""
    found: dict[int, list[float]] = {}
    lacking = None
    for cell in cells:
        value, reason = statistic(metric, cell, slo)
        if value is None:
            lacking = f"{metric} of {cell.plan.variant} in block {cell.plan.block + 1}: {reason}"
        else:
            if not metric.is_share:
                value = math.log(value) if value > 0 else -math.inf
            found.setdefault(cell.plan.block, []).append(value)
    counts = tuple(counted(metric.name, c, slo) for c in cells) if metric.is_share else ()
    return Blocks(found, lacking, counts)


def statistic(metric: Metric, cell: WholeCell, slo: Slo | None) -> tuple[float | None, str | None]:
    """The value of a cell, or None and why there is none. Failure-aware where users wait."""
    if metric.is_share:
        k, n = counted(metric.name, cell, slo)
        return (k / n, None) if n else (None, "no request was planned")
    if metric.p is None:
        return tokens_in_window(cell) / cell.plan.window_s, None
    latency = LATENCIES[metric.name]
    samples = (with_failed if latency.counts_failures else successful)(latency, cell)
    reason = too_few(len(samples), metric.p)
    return (None, reason) if reason else (nearest_rank(sorted(samples), metric.p), None)


def find(
    metric: Metric, base: Blocks, other: Blocks, same_within: float, *, is_paired: bool = True
) -> Found:
    """How `other` stands to `base`: over the blocks of both, or (not paired) of either."""
    lacking = base.lacking or other.lacking
    if lacking:
        return Found((0, 0), (None, None), reason=lacking)
    common = base.values.keys() & other.values.keys() if is_paired else None
    to, of = (
        [
            mean(values)
            for block, values in sorted(side.values.items())
            if common is None or block in common
        ]
        for side in (base, other)
    )
    sizes = (len(to), len(of))
    if not to or not of:
        reason = "no block of both" if is_paired else "one of them has no whole cell"
        return Found(sizes, (None, None), reason=reason)
    if metric.is_share:
        effect = paired(_differences(of, to)) if is_paired else welch(of, to)
        flip = sign_flip_p(_differences(of, to)) if is_paired else None
        counts = pooled(base.counts, other.counts)
        return Found(sizes, (mean(to), mean(of)), effect, flip, pooled=counts)
    values = (math.exp(mean(to)), math.exp(mean(of)))
    if not all(map(math.isfinite, to + of)):
        return _by_signs(metric, Found(sizes, values), to, of, same_within, is_paired=is_paired)
    if not is_paired:
        return Found(sizes, values, welch(of, to).exp())
    logs = _differences(of, to)
    return Found(sizes, values, paired(logs).exp(), sign_flip_p(logs))


def _differences(of: Sequence[float], to: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(of, to, strict=True)]


def _by_signs(
    metric: Metric,
    found: Found,
    to: Sequence[float],
    of: Sequence[float],
    same_within: float,
    *,
    is_paired: bool,
) -> Found:
    """What is said where failures make a value infinite (or no token came) in some block.

    No ratio can be averaged then. In each block the infinite is the worse one, whatever the other
    is; blocks within the margin, or infinite in both, say nothing. Only paired blocks can be told
    apart so.
    """
    bad_to, bad_of = (sum(not math.isfinite(log) for log in logs) for logs in (to, of))
    what = "no tokens" if metric.name == "output_tokens_per_s" else f"{metric} is infinite"
    reason = f"{what} in {bad_of} of {len(of)} blocks, of the baseline in {bad_to} of {len(to)}"
    if not is_paired:
        return found._replace(reason=f"{reason}: no ratio of blocks that are not paired")
    margin = math.log1p(same_within)
    signs = (
        sum(a < b - margin for a, b in zip(of, to, strict=True)),
        sum(a > b + margin for a, b in zip(of, to, strict=True)),
    )
    effect = Effect(None, p_value=sign_test_p(*signs))
    return found._replace(effect=effect, reason=reason, signs=signs)


def judge(
    metric: Metric, found: Found, p_adjusted: float | None, same_within: float
) -> tuple[Change, str]:
    """What is found, given the p-value after Holm over all that was compared with it.

    Same if the interval lies within the margin, be the difference ever so sure: the campaign says
    that it counts as none. Better or worse if the effect itself lies outside, the interval
    excludes "no effect", and the adjusted p-value is below 5 %. Of a share, the counts have to
    say the same.
    """
    effect = found.effect
    if effect is None:
        return Change.INCONCLUSIVE, found.reason
    if effect.value is None:
        return _judge_signs(metric, found, p_adjusted)
    if effect.low is None or effect.high is None or p_adjusted is None:
        reason = f"need 2 blocks or more, have {min(found.n_blocks)}"
        if found.pooled is not None and found.pooled.p_value is not None:
            reason += f" (p {found.pooled.p_value:.2g} if all requests were independent)"
        return Change.INCONCLUSIVE, reason
    least, most = metric.same(same_within)
    none = 0.0 if metric.is_share else 1.0
    text = _text(found)
    margin = f"{SHARE_MARGIN * 100:g} point" if metric.is_share else f"{same_within:.0%}"
    if _stays_above(found, least) and _stays_below(found, most):
        return Change.SAME, f"{text}, within {margin}"
    p_counts = 0.0 if found.pooled is None else found.pooled.p_value or 0.0
    if effect.low <= none <= effect.high:
        why = f"{none:g} lies in the interval"
    elif p_adjusted >= ALPHA:
        why = f"adjusted p {p_adjusted:.2g}"
    elif p_counts >= ALPHA:
        why = f"the counts alone may be luck (p {p_counts:.2g})"
    elif least <= effect.value <= most:
        why = f"it may be less than {margin}, which counts as none"
    else:
        is_better = (effect.value > none) == metric.more_is_better
        change = Change.BETTER if is_better else Change.WORSE
        return change, f"{text}, adjusted p {p_adjusted:.2g}"
    return Change.INCONCLUSIVE, f"{text}, not within {margin}: {why}"


def _judge_signs(metric: Metric, found: Found, p_adjusted: float | None) -> tuple[Change, str]:
    lower, higher = found.signs
    text = f"{found.reason}; lower in {lower}, higher in {higher}"
    if p_adjusted is None or p_adjusted >= ALPHA:
        need = ", need 6 blocks or more" if lower + higher < 6 else ""
        p = "" if p_adjusted is None else f", adjusted p of signs {p_adjusted:.2g}"
        return Change.INCONCLUSIVE, f"{text}{p}{need}"
    is_better = (higher > lower) == metric.more_is_better
    change = Change.BETTER if is_better else Change.WORSE
    return change, f"{text}, adjusted p of signs {p_adjusted:.2g}"


def rules_out_worse(metric: Metric, found: Found, change: Change, same_within: float) -> bool:
    """Whether what is found leaves no room for a change for the worse beyond the margin."""
    least, most = metric.same(same_within)
    is_far = _stays_above(found, least) if metric.more_is_better else _stays_below(found, most)
    return is_far or change in (Change.BETTER, Change.SAME)


def _stays_above(found: Found, least: float) -> bool:
    """Whether the interval, and of a share that of the counts, lies above."""
    return all(each.low is not None and each.low >= least for each in _effects(found))


def _stays_below(found: Found, most: float) -> bool:
    return all(each.high is not None and each.high <= most for each in _effects(found))


def _effects(found: Found) -> list[Effect]:
    effects = [found.effect or Effect(None)]
    return effects if found.pooled is None else [*effects, found.pooled]


def _text(found: Found) -> str:
    """The effect with its interval, as every reason begins; shares in percentage points."""
    effect, counts = found.effect, found.pooled
    if counts is None:
        return "ratio {:.3f} [{:.3f}, {:.3f}]".format(*_ends(effect))
    text = "difference {:+.2f} points [{:+.2f}, {:+.2f}]".format(*_ends(effect, 100))
    return text + ", by the counts alone [{1:+.2f}, {2:+.2f}]".format(*_ends(counts, 100))


def _ends(effect: Effect | None, unit: float = 1) -> list[float]:
    ends = () if effect is None else (effect.value, effect.low, effect.high)
    return [math.nan if end is None else unit * end for end in ends]
