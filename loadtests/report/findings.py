"""What a reader must know first: which variant is better, where, and whether to trust it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtests.analyse.nouns import SHARES, Change, Comparison, Saturation, Verdict
from loadtests.analyse.share_changes import SHARE_MARGIN
from loadtests.records.manifest import EndReason
from loadtests.report.result import CampaignResult, doubts
from loadtests.report.rows import bracket, metric_name, number, percent, short_ratio

DECISIVE = (
    ("ttft_user_ms", (0.99, 0.95, 0.50)),
    ("e2e_user_ms", (0.99, 0.95, 0.50)),
    ("tpot_ms", (0.50,)),
    ("output_tokens_per_s", (None,)),
    ("error_rate", (None,)),
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
        parts.append(_status_of_search(result))
    elif invalid:
        parts.append(f"INVALID: {invalid} of {len(result.summaries)} rows, for the reasons given")
    else:
        parts.append(f"VALID: the client kept its schedule{_worst_of_client(result)}")
    return "; ".join(parts)


def _status_of_search(result: CampaignResult) -> str:
    fell_short = [each.variant for each in result.saturation if each.verdict is Verdict.INVALID]
    if fell_short:
        return f"INVALID: the client fell short, not the server, with {', '.join(fell_short)}"
    return "VALID: probes are judged by what the server did"


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
    if verdict is Verdict.PASS and not result.gated_stages:
        return f"{verdict.upper()}: no stage counts towards the SLO, and the numbers count"
    return f"{verdict.upper()}: {SLO_VERDICTS[verdict]}"


def trust_reasons(result: CampaignResult) -> tuple[str, ...]:
    """Every reason not to trust a number, the gravest first; empty for none."""
    reasons = list(result.problems)
    if result.is_partial and result.ending is not None and result.ending.detail:
        reasons.append(result.ending.detail)
    reasons += [
        f"{each.variant}: {each.reason}"
        for each in result.saturation
        if each.verdict is Verdict.INVALID
    ]
    for row in result.summaries:
        reasons += [f"{row.stage}, {row.variant}: {reason}" for reason in row.invalid_reasons]
    return tuple(dict.fromkeys(reasons))


def slo_reasons(result: CampaignResult) -> tuple[str, ...]:
    """Why the SLO does not hold, or is not decided, row by row.

    Invalid rows are among `trust_reasons`.
    """
    if result.campaign.search is not None:
        return ()
    found = []
    for row in result.summaries:
        if row.slo_verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) and row.slo_reason:
            counts = "" if row.stage in result.gated_stages else " (does not count)"
            reason = f"{row.slo_verdict}: {row.slo_reason}"
            found.append(f"{row.stage}, {row.variant}{counts}: {reason}")
    return tuple(found)


def notes_of(result: CampaignResult) -> tuple[str, ...]:
    """What to know of the plan and of rows that makes no number invalid."""
    rows = (f"{row.stage}, {row.variant}: {note}" for row in result.summaries for note in row.notes)
    return (*result.manifest.notes, *rows)


def clock_of(result: CampaignResult) -> str:
    """From when latencies count, as a sentence."""
    is_closed = {row.concurrency is not None for row in result.summaries}
    if is_closed == {True}:
        return "Latencies in ms from the send time: in a closed loop nothing is planned"
    closed = ", in a closed loop from the send time" if True in is_closed else ""
    return f"Latencies in ms from the planned send time{closed}"


def decisive(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Of one stage: each of DECISIVE once per variant, at one percentile for all variants."""
    known = list(comparisons)
    found: list[Comparison] = []
    for metric, percentiles in DECISIVE:
        for p in percentiles:
            rows = [each for each in known if (each.metric, each.p) == (metric, p)]
            if any(each.effect is not None or each.change in DECIDED for each in rows):
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
        return tuple(_search_headline(each) for each in best_first)
    variants = dict.fromkeys(each.variant for each in result.comparisons)
    return tuple(
        line
        for variant in variants
        for line in _variant_headlines(
            result, [each for each in result.comparisons if each.variant == variant]
        )
    )


def _search_headline(found: Saturation) -> Headline:
    """A rate counts as confirmed where its interval, and not only its point estimate, decides."""
    confirmed = (found.confirmed_pass_per_s, found.confirmed_fail_per_s)
    doubt = (
        ""
        if confirmed == (found.highest_passed_per_s, found.lowest_failed_per_s)
        else (" (not confirmed)")
    )
    if found.verdict is Verdict.INVALID:
        doubt = f" (not to be trusted: {found.reason})"
    return Headline(found.verdict, f"{found.variant}: the SLO {bracket(found)}{doubt}")


def _variant_headlines(result: CampaignResult, mine: Sequence[Comparison]) -> Iterator[Headline]:
    """Of all comparisons of one variant; of stages with an invalid row only that they have one."""
    variant, baseline = mine[0].variant, mine[0].baseline
    stages = list(dict.fromkeys(each.stage for each in result.comparisons))
    doubted = {each.stage: doubts(each, result.summaries, result.problems) for each in mine}
    metrics = list(dict.fromkeys(each.metric for each in mine))
    shown = sorted(
        (each for each in mine if doubted[each.stage] is None),
        key=lambda each: (metrics.index(each.metric), each.p or 0),
    )
    found = [c for c in DECIDED if any(e.change is c for e in shown)]
    for change in found:
        what = _listed([e for e in shown if e.change is change], stages, _range)
        yield Headline(change, f"{variant} is {change} than {baseline}: {what}")
    if shown and not found:
        same = [each for each in shown if each.change is Change.SAME]
        shares = f" (shares {100 * SHARE_MARGIN:g} pp)" * any(e.metric in SHARES for e in same)
        margin = f"the same within {result.campaign.same_within:.0%}{shares}"
        if len(same) == len(shown):
            yield Headline(Change.SAME, f"{variant}: {margin} as {baseline} in all metrics")
        else:
            known = f"; {margin}: {_listed(same, stages)}" if same else ""
            yield Headline(Change.INCONCLUSIVE, f"{variant}: no difference could be shown{known}")
    for why in dict.fromkeys(filter(None, doubted.values())):
        where = [stage for stage, doubt in doubted.items() if doubt == why]
        yield Headline(
            Verdict.INVALID,
            f"not to be trusted: {variant} against {baseline}{_at(where, stages)}, {why}",
        )


def _listed(
    shown: Sequence[Comparison],
    stages: Sequence[str],
    write: Callable[[Sequence[Comparison]], str] | None = None,
) -> str:
    """`TTFT P50 0.70× to 0.81×, TPOT P50 0.75× (heavy)`: by metric, with stages if not all."""
    parts = []
    for name in dict.fromkeys(map(metric_name, shown)):
        mine = [each for each in shown if metric_name(each) == name]
        effect = f" {write(mine)}" if write else ""
        parts.append(f"{name}{effect}{_at([each.stage for each in mine], stages)}")
    return ", ".join(parts)


def _at(where: Sequence[str], stages: Sequence[str]) -> str:
    return "" if list(where) == list(stages) else f" ({', '.join(where)})"


def _range(mine: Sequence[Comparison]) -> str:
    """`0.70× to 0.81×`, lowest and highest effect over the stages; `∞ → 30.0 ms` has no ratio."""
    known = sorted((each for each in mine if each.effect is not None), key=lambda e: e.effect or 0)
    ends = [" to ".join(dict.fromkeys(map(short_ratio, (known[0], known[-1]))))] if known else []
    return ", ".join([*ends, *dict.fromkeys(_step(e) for e in mine if e.effect is None)])


def _step(each: Comparison) -> str:
    """`∞ → 30.0 ms`; `∞` where failures reach the variant's percentile."""
    before, after = map(number, each.values)
    if after == "∞":
        return after
    return f"{before} → {after}{' ms' if each.metric.endswith('_ms') else ''}"
