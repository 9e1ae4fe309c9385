"""From a campaign's result, an evaluation and a recommendation to findings; pure."""

import math

from loadtests.analyse.nouns import Comparison, VariantSummary
from loadtests.analyse.nouns import Verdict as LoadVerdict
from loadtests.report.findings import status_line, trust_reasons
from loadtests.report.result import CampaignResult
from loadtests.report.rows import number, with_interval
from serve_app.domain.quality import QualityReport, VariantQuality
from serve_app.domain.verdict import Verdict
from serve_app.pipeline.findings import JudgedVariant, LatencyRatio, Load, LoadRow, Recommended
from serve_app.recommend.campaigns import METRICS
from serve_app.recommend.page import answer_of
from serve_app.recommend.report import Report

_VERDICTS = {
    LoadVerdict.PASS: Verdict.PASS,
    LoadVerdict.FAIL: Verdict.FAIL,
    LoadVerdict.INCONCLUSIVE: Verdict.INCONCLUSIVE,
    LoadVerdict.INVALID: Verdict.ERROR,
}


def load_of(result: CampaignResult) -> Load:
    """What a campaign says. A partial one is an error here: it says nothing of what it left out."""
    verdict = Verdict.ERROR if result.is_partial else _VERDICTS[result.verdict]
    reasons = [status_line(result), *trust_reasons(result)]
    return Load(
        verdict=verdict,
        reason="; ".join(dict.fromkeys(reasons[:3])),
        rows=tuple(_row(result, each) for each in result.summaries),
        ratios=tuple(
            _ratio(each, name)
            for name, key in METRICS.items()
            for each in result.comparisons
            if (each.metric, each.p) == key
        ),
    )


def quality_of(report: QualityReport) -> tuple[JudgedVariant, ...]:
    """What an evaluation says of each variant but the baseline; its own faults go to all."""
    baseline = report[report.baseline]
    others = [each for each in report.variants if each.name != report.baseline]
    found = [_judged(each) for each in others]
    if baseline.verdict is Verdict.ERROR:
        found.insert(0, _judged(baseline))
    return tuple(found)


def recommended_of(report: Report) -> Recommended:
    """The recommendation in short."""
    found = report.recommendation
    return Recommended(
        verdict=found.verdict,
        answer=answer_of(report),
        chosen=found.chosen,
        sentences=tuple(found.sentences),
        next_steps=tuple(found.overall.next_steps),
    )


def _row(result: CampaignResult, row: VariantSummary) -> LoadRow:
    latency = row.latencies["e2e_user_ms"]
    by_p = {q.p: q for q in latency.with_failures or latency.quantiles}
    p95, p99 = by_p[0.95], by_p[0.99]
    rate = f"{number(row.rate_per_s)}/s" if row.rate_per_s is not None else "a trace"
    return LoadRow(
        stage=row.stage,
        load=rate if row.concurrency is None else f"{row.concurrency} in flight",
        concurrency=row.concurrency,
        is_gated=row.stage in result.gated_stages,
        variant=row.variant,
        n_planned=row.n_planned,
        n_ok=row.n_ok,
        is_valid=row.is_valid,
        reason="; ".join(row.invalid_reasons) or row.slo_reason or "",
        slo=None if row.slo_verdict is None else _VERDICTS[row.slo_verdict],
        output_tokens_per_s=row.output_tokens_per_s,
        p95=with_interval(p95),
        p99=with_interval(p99),
        has_tail=p95.value is not None and p99.value is not None,
    )


def _ratio(each: Comparison, name: str) -> LatencyRatio:
    known = [v if v is not None and math.isfinite(v) else None
             for v in (each.ratio, each.low, each.high)]  # fmt: skip
    return LatencyRatio(
        stage=each.stage, variant=each.variant, latency=name,
        ratio=known[0], low=known[1], high=known[2], reason=each.reason,
    )  # fmt: skip


def _judged(each: VariantQuality) -> JudgedVariant:
    likelihood = each.likelihood
    agreement = likelihood.agreement if likelihood is not None else None
    return JudgedVariant(
        name=each.name,
        verdict=each.verdict,
        reason=each.reason,
        n_items=sum(known.n for known in each.sets if known.decides),
        score=each.score,
        loss=each.loss,
        perplexity_ratio=likelihood.perplexity_ratio if likelihood is not None else None,
        abs_delta_logprob=agreement.abs_delta_logprob if agreement is not None else None,
    )
