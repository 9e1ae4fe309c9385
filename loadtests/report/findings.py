"""What a reader must know first: which variant is better, where, and whether to trust it."""

from collections.abc import Iterable, Sequence

from loadtests.analyse.nouns import Change, Comparison, Saturation, Verdict
from loadtests.records.manifest import EndReason
from loadtests.report.result import CampaignResult
from loadtests.report.rows import bracket, metric_name, number, short_ratio
from loadtests.report.stages import variants_of

DECISIVE = (
    ("ttft_user_ms", (0.99, 0.95, 0.50)),
    ("e2e_user_ms", (0.99, 0.95, 0.50)),
    ("tpot_ms", (0.50,)),
    ("output_tokens_per_s", (None,)),
)
"""The metrics that the first table shows, each at the first percentile that the blocks support."""

ENDED = {
    EndReason.COMPLETE: "it ran to its end",
    EndReason.INTERRUPTED: "it was interrupted",
    EndReason.WORKER_LOST: "a load process was lost",
    EndReason.SERVER_GONE: "the server was gone",
    EndReason.FAILED: "the load process failed",
}

VERDICTS = {
    Verdict.PASS: "the SLO holds",
    Verdict.FAIL: "the SLO does not hold",
    Verdict.INCONCLUSIVE: "the samples do not decide",
    Verdict.INVALID: "the numbers say nothing of the server",
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
        parts.append("VALID: the client kept its schedule")
    return "; ".join(parts)


def ended(result: CampaignResult) -> str:
    """How the run ended, in words."""
    if result.ending is None:
        return "it was killed"
    return ENDED[result.ending.reason]


def verdict_line(result: CampaignResult) -> str:
    """`FAIL: the SLO does not hold`; without an SLO it says only whether the numbers count."""
    verdict = result.verdict
    meaning = VERDICTS[verdict]
    if verdict is Verdict.PASS and result.campaign.slo is None:
        meaning = "no SLO was asked for, and the numbers count"
    return f"{verdict.upper()}: {meaning}"


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
            if any(each.ratio is not None for each in rows):
                found += rows
                break
    return tuple(found)


def headlines(result: CampaignResult) -> tuple[str, ...]:
    """One sentence per stage (per search: one per variant) that says who is better."""
    if result.saturation:
        return tuple(
            f"{each.variant}: the SLO holds up to {bracket(each)} ({each.verdict})"
            for each in _best_first(result)
        )
    stages = dict.fromkeys(each.stage for each in result.comparisons)
    return tuple(
        _stage_headline(stage, [each for each in result.comparisons if each.stage == stage])
        for stage in stages
    )


def _best_first(result: CampaignResult) -> list[Saturation]:
    return sorted(result.saturation, key=lambda each: -(each.highest_passed_per_s or 0.0))


def _stage_headline(stage: str, comparisons: Sequence[Comparison]) -> str:
    shown = decisive(comparisons)
    baseline = comparisons[0].baseline
    sentences = []
    for change in (Change.BETTER, Change.WORSE):
        found = [each for each in shown if each.change is change]
        for variant in dict.fromkeys(each.variant for each in found):
            metrics = ", ".join(
                f"{metric_name(each)} {short_ratio(each)}"
                for each in found
                if each.variant == variant
            )
            sentences.append(f"{variant} is {change} in {metrics}")
    if not sentences:
        undecided = [each for each in shown if each.change is Change.INCONCLUSIVE]
        if undecided or not shown:
            return f"{stage}: no difference from {baseline} could be shown"
        return f"{stage}: no variant differs from {baseline}"
    return f"{stage}, against {baseline}: " + "; ".join(sentences)


def fastest(result: CampaignResult, stage: str, metric: str = "ttft_user_ms") -> str | None:
    """`fp8 (78.1 ms)`: the variant with the lowest failure-aware P95 of a stage."""
    found = []
    for row in result.summaries:
        quantiles = row.latencies[metric].with_failures or row.latencies[metric].quantiles
        values = [q.value for q in quantiles if q.p == 0.95 and q.value is not None]
        if row.stage == stage and values:
            found.append((values[0], variants_of(result).index(row.variant), row.variant))
    if not found:
        return None
    value, _, variant = min(found)
    return f"{variant} ({number(value)} ms)"
