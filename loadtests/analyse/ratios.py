"""How one thing stands to another in one metric: statistics by block, their ratio, the verdict."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from loadtests.analyse.metrics import LATENCIES
from loadtests.analyse.nouns import Change
from loadtests.analyse.significance import (
    ALPHA,
    Ratio,
    mean,
    paired_ratio,
    sign_flip_p,
    welch_ratio,
)
from loadtests.analyse.stats import nearest_rank, too_few
from loadtests.analyse.summary import successful, tokens_in_window, with_failed
from loadtests.analyse.whole import WholeCell


class Metric(NamedTuple):
    """What is compared. `p` None: no percentile, but the cell's output tokens per second."""

    name: str
    p: float | None

    @property
    def more_is_better(self) -> bool:
        """Whether a higher value is the better one."""
        return self.p is None

    def __str__(self) -> str:
        return self.name if self.p is None else f"{self.name} P{self.p * 100:g}"


METRICS = (
    Metric("ttft_user_ms", 0.50),
    Metric("ttft_user_ms", 0.95),
    Metric("e2e_user_ms", 0.50),
    Metric("e2e_user_ms", 0.95),
    Metric("tpot_ms", 0.50),
    Metric("output_tokens_per_s", None),
)


class Blocks(NamedTuple):
    """One statistic of one variant at one stage: by block, one logarithm per repeat.

    A failure-aware percentile that failures reach is infinite; no tokens are minus infinity.
    """

    logs: dict[int, list[float]]
    lacking: str | None
    """Why a cell has no such value; None: every cell has."""


class Found(NamedTuple):
    """What two series of blocks say, before it is known how many comparisons there are."""

    n_blocks: tuple[int, int]
    """Of the baseline and of the other."""
    values: tuple[float | None, float | None]
    """Geometric means, in the same order."""
    ratio: Ratio | None
    """None where there is none; `change` and `reason` are then final."""
    p_sign_flip: float | None
    change: Change
    reason: str


def blocks_of(metric: Metric, cells: Sequence[WholeCell]) -> Blocks:
    """The statistic of each cell."""
    logs: dict[int, list[float]] = {}
    lacking = None
    for cell in cells:
        value, reason = statistic(metric, cell)
        if value is None:
            lacking = f"{metric} of {cell.plan.variant} in block {cell.plan.block + 1}: {reason}"
        else:
            log = math.log(value) if value > 0 else -math.inf
            logs.setdefault(cell.plan.block, []).append(log)
    return Blocks(logs, lacking)


def statistic(metric: Metric, cell: WholeCell) -> tuple[float | None, str | None]:
    """The value of a cell, or None and why there is none. Failure-aware where users wait."""
    if metric.p is None:
        return tokens_in_window(cell) / cell.plan.window_s, None
    latency = LATENCIES[metric.name]
    samples = (with_failed if latency.counts_failures else successful)(latency, cell)
    reason = too_few(len(samples), metric.p)
    return (None, reason) if reason else (nearest_rank(sorted(samples), metric.p), None)


def find(metric: Metric, base: Blocks, other: Blocks, *, paired: bool = True) -> Found:
    """The ratio of `other` to `base`: over the blocks of both, or (not paired) of either."""
    lacking = base.lacking or other.lacking
    if lacking:
        return Found((0, 0), (None, None), None, None, Change.INCONCLUSIVE, lacking)
    common = base.logs.keys() & other.logs.keys() if paired else None
    to, of = (
        [
            mean(logs)
            for block, logs in sorted(side.logs.items())
            if common is None or block in common
        ]
        for side in (base, other)
    )
    sizes = (len(to), len(of))
    if not to or not of:
        reason = "no block of both" if paired else "one of them has no whole cell"
        return Found(sizes, (None, None), None, None, Change.INCONCLUSIVE, reason)
    values = (math.exp(mean(to)), math.exp(mean(of)))
    if not all(map(math.isfinite, to + of)):
        return Found(sizes, values, None, None, *judge_infinite(metric, to, of))
    later = "not yet judged"
    if not paired:
        return Found(sizes, values, welch_ratio(of, to), None, Change.INCONCLUSIVE, later)
    logs = [a - b for a, b in zip(of, to, strict=True)]
    return Found(sizes, values, paired_ratio(logs), sign_flip_p(logs), Change.INCONCLUSIVE, later)


def judge(
    metric: Metric, found: Found, p_adjusted: float | None, same_within: float
) -> tuple[Change, str]:
    """What is found, given the p-value after Holm over all that was compared with it.

    Same if the interval lies within the margin, be the difference ever so sure: the campaign says
    that it counts as none. Else better or worse if the interval excludes 1 and the adjusted
    p-value is below 5 %.
    """
    ratio = found.ratio
    if ratio is None or ratio.value is None:
        return found.change, found.reason
    if ratio.low is None or ratio.high is None or p_adjusted is None:
        return Change.INCONCLUSIVE, f"need 2 blocks or more, have {min(found.n_blocks)}"
    text = f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    if 1 / (1 + same_within) <= ratio.low and ratio.high <= 1 + same_within:
        return Change.SAME, f"{text}, within {same_within:.0%}"
    excludes_1 = ratio.low > 1 or ratio.high < 1
    if excludes_1 and p_adjusted < ALPHA:
        is_better = (ratio.value > 1) == metric.more_is_better
        change = Change.BETTER if is_better else Change.WORSE
        return change, f"{text}, adjusted p {p_adjusted:.2g}"
    why = f"adjusted p {p_adjusted:.2g}" if excludes_1 else "1 lies in the interval"
    return Change.INCONCLUSIVE, f"{text}: {why}, and it is wider than {same_within:.0%}"


def judge_infinite(metric: Metric, to: Sequence[float], of: Sequence[float]) -> tuple[Change, str]:
    """What is said where failures make a value infinite (or no token came) in some block.

    No ratio can be averaged then. The side that has such a block alone is the worse one: its
    users had no answer where those of the other side, in every block, had one.
    """
    bad_to, bad_of = (sum(not math.isfinite(log) for log in logs) for logs in (to, of))
    what = "no tokens" if metric.more_is_better else f"{metric} is infinite by failures"
    if bad_of and bad_to:
        counts = f"in {bad_of} of {len(of)} blocks, of the baseline in {bad_to} of {len(to)}"
        return Change.INCONCLUSIVE, f"{what} {counts}"
    if bad_of:
        return Change.WORSE, f"{what} in {bad_of} of {len(of)} blocks, of the baseline in none"
    return Change.BETTER, f"{what} in no block, of the baseline in {bad_to} of {len(to)}"
