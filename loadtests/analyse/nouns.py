"""What the analysis finds: plain data, as `report.json` holds it. Times in ms, rates per second."""

from enum import StrEnum
from typing import Literal

import msgspec

from loadtests.analyse.stats import Quantile


class Verdict(StrEnum):
    """Whether the SLO holds. `invalid`: the client, not the server, made the numbers."""

    PASS = "pass"  # noqa: S105 a verdict, no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


class Change(StrEnum):
    """How a metric of one thing stands to that of another."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


SHARES = ("error_rate", "attainment")
"""Metrics that are shares of requests: what is compared is their difference, not their ratio."""


class LatencySummary(msgspec.Struct, frozen=True):
    """Percentiles of one latency in ms, of the requests that succeeded."""

    quantiles: tuple[Quantile, ...]
    with_failures: tuple[Quantile, ...] | None
    """The same with every failure as infinite; None for a latency that no user waits for."""
    mean: float | None = None

    def at(self, p: float) -> Quantile:
        """The percentile `p` among successes; KeyError if it was not computed."""
        for each in self.quantiles:
            if each.p == p:
                return each
        raise KeyError(p)


class Share(msgspec.Struct, frozen=True):
    """`k` of `n`, with a 95 % interval (Clopper-Pearson on the effective sample size)."""

    k: int
    n: int
    low: float
    high: float
    n_eff: int | None = None
    """Independent requests that say as much as these `n`."""


class VariantSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One variant under one stage, all blocks together. Rates are per second of window."""

    stage: str
    variant: str
    rate_per_s: float | None
    """Planned; None in a closed loop."""
    concurrency: int | None
    n_planned: int
    n_ok: int
    errors: dict[str, int]
    """Failures by error class."""
    served_by: dict[str, int]
    """Answers by `x-variant`; an answer without the header is not in it."""
    kinds: dict[str, int]
    """Requests by traffic class, of a mixture."""
    window_s: float
    offered_per_s: float
    achieved_per_s: float
    output_tokens_per_s: float
    input_tokens: Quantile
    """P50 of the server's count."""
    output_tokens: Quantile
    attainment: Share | None
    """Requests that met every limit of the SLO, of those planned."""
    goodput_per_s: float | None
    slo_verdict: Verdict | None
    slo_reason: str | None
    client_cpu_share: float | None
    """Of the busiest load process."""
    little_gap: float | None
    peak_in_flight: int | None
    latencies: dict[str, LatencySummary]
    """By name: the keys of `loadtests.analyse.metrics.LATENCIES`, and `itl_ms`, `icl_ms`."""
    is_valid: bool
    invalid_reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What to know of the row that does not make it invalid."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one variant against the baseline's, paired by block (same requests)."""

    stage: str
    metric: str
    """As `ttft_user_ms`; `p` None: its mean, a rate, or one of `SHARES`."""
    p: float | None
    variant: str
    baseline: str
    n_blocks: int
    ratio: float | None
    """Geometric mean over blocks of variant / baseline; None for a share."""
    low: float | None
    high: float | None
    """95 % interval of the ratio: Student's t on the logarithms. Of a share: of the difference,
    Student's t on the shares."""
    p_value: float | None
    """Two-sided, of ratio 1 (difference 0), by the same t. Where failures make a block infinite
    there is no ratio, and it is that of the sign test over the blocks."""
    p_sign_flip: float | None
    """By exact sign flips of the blocks: no distribution assumed."""
    p_adjusted: float | None
    """`p_value` after Holm over all comparisons of the stage."""
    change: Change
    reason: str
    noise_floor: float | None = None
    """Typical ratio (>= 1) between two runs of the same variant in one block; needs repeats."""
    values: tuple[float | None, float | None] = (None, None)
    """Of the baseline and of the variant: geometric means over the blocks; of a share, means."""
    difference: float | None = None
    """Of a share: mean over the blocks of variant - baseline."""

    @property
    def effect(self) -> float | None:
        """What `low` and `high` are the interval of: the ratio, or the difference of a share."""
        return self.difference if self.metric in SHARES else self.ratio


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One rate that a search tried on one variant."""

    rate_per_s: float
    n_cells: int
    attainment: Share
    """Its interval is widened (Bonferroni) for the `max_repeats` looks that a rate may get."""
    verdict: Verdict
    """invalid: the client made it miss the SLO, or may have: it broke the validity limits."""


class Saturation(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate at which the SLO holds for one variant."""

    variant: str
    highest_passed_per_s: float | None
    """None: not even the lowest rate passed."""
    lowest_failed_per_s: float | None
    """None: even the highest rate passed."""
    probes: tuple[Probe, ...]
    """Ascending by rate."""
    verdict: Verdict
    """pass: bracketed to the asked precision; fail: the lowest rate fails; invalid: the client
    fell short where the bracket ends; else inconclusive."""
    reason: str
    confirmed_pass_per_s: float | None = None
    """The highest rate whose interval lies above the target; the brackets go by point estimates
    where `max_repeats` cells did not decide."""
    confirmed_fail_per_s: float | None = None
    """The lowest rate above it whose interval lies below the target."""


class RunChange(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one variant at one stage: run B against run A."""

    stage: str
    variant: str
    metric: str
    p: float | None
    n_blocks: tuple[int, int]
    """Of A and of B."""
    values: tuple[float | None, float | None]
    kind: Literal["ratio", "difference"]
    """What `effect` and its interval are: B / A, or B - A for shares."""
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None
    change: Change
    reason: str
    rules_out_worse: bool
    """Whether the interval leaves no room for a change for the worse beyond the margin."""
