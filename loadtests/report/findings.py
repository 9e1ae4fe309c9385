"""What a reader must know first: which variant is better, where, and whether to trust it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtests.analyse.nouns import Change, Comparison, Verdict
from loadtests.records.manifest import EndReason
from loadtests.report.result import CampaignResult
from loadtests.report.rows import bracket, metric_name, number, percent, short_ratio

DECISIVE = (
    ("ttft_user_ms", (0.99, 0.95, 0.50)),
    ("e2e_user_ms", (0.99, 0.95, 0.50)),
    ("tpot_ms", (0.50,)),
    ("output_tokens_per_s", (None,)),
)
"""The metrics that the first table shows, each at the first percentile that the blocks support."""

DECIDED = (Change.BETTER, Change.WORSE)

ENDED = {
    EndReason.COMPLETE: "it ran to its end",
    EndReason.INTERRUPTED: "it was interrupted",
    EndReason.WORKER_LOST: "a load process was lost",
    EndReason.SERVER_GONE: "the server was gone",
    EndReason.FAILED: "the load process failed",
}

SLO_VERDICTS = {
    Verdict.PASS: "the SLO holds at every stage that counts",
    Verdict.FAIL: "the SLO does not hold",
    Verdict.INCONCLUSIVE: "the samples do not decide whether the SLO holds",
}
SEARCH_VERDICTS = {
    Verdict.PASS: "the highest rate within the SLO is known for every variant",
    Verdict.FAIL: "a variant misses the SLO even at the lowest rate",
    Verdict.INCONCLUSIVE: "the highest rate within the SLO is not known for every variant",
}


def status_line(result: CampaignResult) -> str:
    """Whether the run can be trusted, in one line."""
    parts = []
    if result.is_partial:
        total = "cells" if result.n_cells is None else f"of {result.n_cells} cells"
        parts.append(f"PARTIAL: {ended(result)} after {result.n_cells_done} {total}")
    if not result.summaries:
        return "; ".join([*parts, "NO RESULT: no cell ran to its end"])
    invalid = sum(not each.is_valid for each in result.summaries)
    if result.problems:
        more = len(result.problems) - 1
        others = f" (and {more} more)" if more else ""
        parts.append(f"INVALID: {result.problems[0]}{others}")
    elif result.campaign.search is not None:
        parts.append("VALID: probes are judged by what the server did")
    elif invalid:
        parts.append(f"INVALID: {invalid} of {len(result.summaries)} rows, for the reasons given")
    else:
        parts.append(f"VALID: the client kept its schedule{_worst_of_client(result)}")
    return "; ".join(parts)


def _worst_of_client(result: CampaignResult) -> str:
    """` (lag P99 at most 1.2 ms, CPU at most 11%)`, of all rows."""
    lags = [row.latencies["lag_ms"].at(0.99).value for row in result.summaries]
    shares = [row.client_cpu_share for row in result.summaries]
    worst_lag = max((lag for lag in lags if lag is not None), default=None)
    worst_share = max((share for share in shares if share is not None), default=None)
    parts = [] if worst_lag is None else [f"lag P99 at most {number(worst_lag)} ms"]
    parts += [] if worst_share is None else [f"CPU at most {percent(worst_share)} of a core"]
    return f" ({', '.join(parts)})" if parts else ""


def ended(result: CampaignResult) -> str:
    """How the run ended, in words."""
    if result.ending is None:
        return "it was killed"
    return ENDED[result.ending.reason]


def verdict_line(result: CampaignResult) -> str:
    """`FAIL: the SLO does not hold`: the verdict and what it is about."""
    verdict = result.verdict
    if verdict is Verdict.INVALID:
        return f"{verdict.upper()}: the numbers say nothing of the server"
    if verdict is Verdict.INCONCLUSIVE and result.is_partial:
        return f"{verdict.upper()}: the run is partial"
    if result.campaign.search is not None:
        return f"{verdict.upper()}: {SEARCH_VERDICTS[verdict]}"
    if verdict is Verdict.PASS and result.campaign.slo is None:
        return f"{verdict.upper()}: no SLO was asked for, and the numbers count"
    return f"{verdict.upper()}: {SLO_VERDICTS[verdict]}"


def trust_reasons(result: CampaignResult) -> tuple[str, ...]:
    """Every reason not to trust a number, the gravest first; empty for none."""
    reasons = list(result.problems)
    if result.is_partial and result.ending is not None and result.ending.detail:
        reasons.append(result.ending.detail)
    for row in result.summaries:
        reasons += [f"{row.stage}, {row.variant}: {reason}" for reason in row.invalid_reasons]
    return tuple(dict.fromkeys(reasons))


def slo_reasons(result: CampaignResult) -> tuple[str, ...]:
    """Why the SLO does not hold, or is not decided, row by row."""
    return tuple(
        f"{row.stage}, {row.variant}: {row.slo_verdict}: {row.slo_reason}"
        for row in result.summaries
        if row.slo_verdict not in (None, Verdict.PASS)
        and row.slo_reason
        and result.campaign.search is None
    )


def decisive(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Of one stage: each of DECISIVE once per variant, at one percentile for all variants."""
    known = list(comparisons)
    found: list[Comparison] = []
    for metric, percentiles in DECISIVE:
        for p in percentiles:
            rows = [each for each in known if (each.metric, each.p) == (metric, p)]
            if any(each.ratio is not None or each.change in DECIDED for each in rows):
                found += rows
                break
    return tuple(found)


@dataclass(frozen=True)
class Headline:
    """One sentence about one variant, and its tone."""

    tone: Change | Verdict
    text: str


def headlines(result: CampaignResult) -> tuple[Headline, ...]:
    """One sentence per variant: better or worse than the baseline in what and where; of a search,
    how much it carries, the strongest first.
    """
    if result.saturation:
        best_first = sorted(result.saturation, key=lambda each: -(each.highest_passed_per_s or 0))
        return tuple(
            Headline(each.verdict, f"{each.variant}: the SLO {bracket(each)}")
            for each in best_first
        )
    stages = list(dict.fromkeys(each.stage for each in result.comparisons))
    shown = [
        each
        for stage in stages
        for each in decisive(e for e in result.comparisons if e.stage == stage)
    ]
    variants = dict.fromkeys(each.variant for each in result.comparisons)
    return tuple(
        line
        for variant in variants
        for line in _variant_headlines([e for e in shown if e.variant == variant], variant, stages)
    )


def _variant_headlines(
    shown: Sequence[Comparison], variant: str, stages: Sequence[str]
) -> Iterator[Headline]:
    found = [c for c in DECIDED if any(e.change is c for e in shown)]
    for change in found:
        parts = []
        for name in dict.fromkeys(metric_name(e) for e in shown if e.change is change):
            mine = [e for e in shown if e.change is change and metric_name(e) == name]
            where = [e.stage for e in mine]
            at = "" if where == list(stages) else f" ({', '.join(where)})"
            parts.append(f"{name} {_range(mine)}{at}")
        text = f"{variant} is {change} than {shown[0].baseline}: {', '.join(parts)}"
        yield Headline(change, text)
    if not found:
        is_same = bool(shown) and all(e.change is Change.SAME for e in shown)
        what = "the same as the baseline" if is_same else "no difference could be shown"
        yield Headline(Change.SAME if is_same else Change.INCONCLUSIVE, f"{variant}: {what}")


def _range(mine: Sequence[Comparison]) -> str:
    """`0.70× to 0.81×`, lowest and highest ratio over the stages."""
    ratios = sorted(mine, key=lambda e: math.inf if e.ratio is None else e.ratio)
    ends = dict.fromkeys(short_ratio(e) for e in (ratios[0], ratios[-1]))
    return " to ".join(ends)
