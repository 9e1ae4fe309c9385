"""Why a row says nothing of the server: mostly what the client did to it.

Limits and defaults are those of the campaign's `validity`.
"""

import statistics
from collections.abc import Iterator, Sequence

from loadtests.analyse.nouns import LatencySummary, VariantSummary
from loadtests.analyse.stats import Quantile
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign
from loadtests.records.record import ErrorClass
from serve_app.domain.units import NS_PER_MS, NS_PER_S

MUCH_LONGER = 1.25
"""Prompts this many times longer or shorter than planned are worth a note."""


def little_gap(cell: WholeCell) -> float:
    """`|L - lambda W| / L` over a cell, from empty to empty, where the law is exact.

    L is the pacers' own count of open requests over time; lambda W is the sum of the records'
    stays. They part when records are lost or stamped on another path than the requests took.
    """
    counted = sum(run.in_flight_ns for run in cell.runs)
    stays = sum(
        r.t_end_ns - r.t_send_ns
        for r in cell.records
        if r.t_send_ns is not None and r.t_end_ns is not None
    )
    if counted == 0:
        return 0.0 if stays == 0 else 1.0
    return abs(counted - stays) / counted


def client_cpu_share(cells: Sequence[WholeCell]) -> float | None:
    """CPU time of the busiest load process in any cell, as a share of one core.

    Until the planned end of the cell: waiting for the last answers would dilute it.
    """
    shares = [run.cpu_s * NS_PER_S / cell.plan.end_ns for cell in cells for run in cell.runs]
    return max(shares, default=None)


def invalid_reasons(
    campaign: Campaign, summary: VariantSummary, cells: Sequence[WholeCell], *, server_fails: bool
) -> Iterator[str]:
    """Each way in which these numbers are the client's and not the server's.

    `server_fails`: the SLO fails whatever became of the requests that were never sent. Then a
    full client and not one success are the server's doing, if the verdict counts.
    """
    limits = campaign.validity
    if not summary.n_ok and not (server_fails and _is_gated(campaign, summary)):
        yield f"none of {summary.n_planned} requests succeeded"
    if not server_fails:
        yield from _sent_too_few(campaign, summary)
    yield from of_other_length(campaign, cells)
    lag = highest_known(summary.latencies["lag_ms"])
    if lag is not None and lag.value is not None:
        text = f"lag P{lag.p * 100:g} {lag.value:.1f} ms"
        if lag.value > limits.lag_p99_ms:
            yield f"{text} > {limits.lag_p99_ms:g} ms: give the client a core of its own"
        ttft_ms = summary.latencies["ttft_service_ms"].at(0.50).value
        if ttft_ms is not None and lag.value > limits.lag_share_of_ttft * ttft_ms:
            yield f"{text} > {limits.lag_share_of_ttft:.0%} of TTFT P50 {ttft_ms:.1f} ms"
    cpu = summary.client_cpu_share
    if cpu is not None and cpu > limits.client_cpu_share:
        yield f"client CPU {cpu:.0%} of a core > {limits.client_cpu_share:.0%}: more --processes"
    if summary.little_gap is not None and summary.little_gap > limits.little_gap:
        yield f"Little's law is off by {summary.little_gap:.1%} > {limits.little_gap:.0%}"
    clock_ms = max(run.clock_error_ns for cell in cells for run in cell.runs) / NS_PER_MS
    if clock_ms > limits.clock_error_ms:
        yield f"a worker's clock is known to {clock_ms:.1f} ms > {limits.clock_error_ms:g} ms"


def of_other_length(campaign: Campaign, cells: Sequence[WholeCell]) -> Iterator[str]:
    """That answers are longer or shorter than forced: not the work that was asked for."""
    if not campaign.workload.forced_length:
        return
    ok = [r for cell in cells for r in cell.measured if r.error is None]
    n_other = sum(r.output_tokens != r.max_tokens for r in ok)
    if n_other:
        yield (
            f"{n_other} of {len(ok)} answers are not of the forced length: the engine "
            "ignores ignore_eos and min_tokens, or streams were cut"
        )


def _sent_too_few(campaign: Campaign, summary: VariantSummary) -> Iterator[str]:
    """That the client sent less than it should have: refused requests were never sent."""
    if summary.achieved_per_s < campaign.validity.achieved_share * summary.offered_per_s:
        refused = summary.errors.get(ErrorClass.REFUSED_BY_CLIENT, 0)
        yield (
            f"sent {summary.achieved_per_s:.1f}/s of {summary.offered_per_s:.1f}/s "
            f"({refused} refused at in_flight_cap {campaign.in_flight_cap})"
        )


def _is_gated(campaign: Campaign, summary: VariantSummary) -> bool:
    """Whether the row's verdict counts, so that a fail is a fail of the campaign."""
    return campaign.search is not None or any(
        stage.name == summary.stage and stage.gate for stage in campaign.stages
    )


def notes(
    campaign: Campaign, summary: VariantSummary, cells: Sequence[WholeCell], *, server_fails: bool
) -> Iterator[str]:
    """What to know of a row, be it valid or not; `server_fails` as for `invalid_reasons`."""
    if summary.concurrency is not None:
        yield "closed loop: latencies hide what waiting users would feel"
    if server_fails:
        yield from _sent_too_few(campaign, summary)
    lag = highest_known(summary.latencies["lag_ms"])
    ttft_ms = summary.latencies["ttft_service_ms"].at(0.50).value
    if lag is not None and lag.value is not None and ttft_ms:
        share = lag.value / ttft_ms
        if share > campaign.same_within:
            yield (
                f"client lag P{lag.p * 100:g} {lag.value:.1f} ms is {share:.0%} of TTFT P50: "
                "differences of TTFT below that are not the server's"
            )
    ratios = [
        r.prompt_tokens / r.planned_input_tokens
        for cell in cells
        for r in cell.measured
        if r.prompt_tokens is not None and r.planned_input_tokens
    ]
    if ratios:
        ratio = statistics.median(ratios)
        if not 1 / MUCH_LONGER <= ratio <= MUCH_LONGER:
            yield f"prompts had {ratio:.2f} times the planned tokens (median of {len(ratios)})"


def highest_known(latency: LatencySummary) -> Quantile | None:
    """P99, or the highest percentile below it that the sample supports."""
    known = [q for q in latency.quantiles if q.value is not None and q.p <= 0.99]
    return known[-1] if known else None
