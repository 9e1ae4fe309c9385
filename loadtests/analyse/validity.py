"""Why a row says nothing of the server: mostly what the client did to it.

Limits and defaults are those of the campaign's `validity`.
"""

import statistics
from collections.abc import Iterator, Sequence

from loadtests.analyse.nouns import LatencySummary, VariantSummary
from loadtests.analyse.stats import Quantile
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign
from loadtests.records.record import ErrorClass, RequestRecord
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
    """CPU time of the busiest load process in any cell, as a share of one core."""
    shares = [
        run.cpu_s * NS_PER_S / run.t_end_ns
        for cell in cells
        for run in cell.runs
        if run.t_end_ns > 0
    ]
    return max(shares, default=None)


def invalid_reasons(
    campaign: Campaign, summary: VariantSummary, cells: Sequence[WholeCell]
) -> Iterator[str]:
    """Each way in which these numbers are the client's and not the server's."""
    limits = campaign.validity
    if not summary.n_ok:
        yield f"none of {summary.n_planned} requests succeeded"
    # refused ones were never sent: what the cap did shows here
    if summary.achieved_per_s < limits.achieved_share * summary.offered_per_s:
        refused = summary.errors.get(ErrorClass.REFUSED_BY_CLIENT, 0)
        yield (
            f"sent {summary.achieved_per_s:.1f}/s of {summary.offered_per_s:.1f}/s "
            f"({refused} refused at in_flight_cap {campaign.in_flight_cap})"
        )
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


def notes(measured: Sequence[RequestRecord]) -> Iterator[str]:
    """What to know of a row that leaves it valid: prompts of other lengths than planned."""
    ratios = [
        r.prompt_tokens / r.planned_input_tokens
        for r in measured
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
