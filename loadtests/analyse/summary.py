"""From raw records to the numbers of a report; each number is defined here and nowhere else.

Definitions (all stamps are monotonic and of the load process):

    TTFT_user    = t_first - t_sched        TTFT_service = t_first - t_send
    E2E_user     = t_last - t_sched         E2E_service  = t_last - t_send
    TPOT         = (t_last - t_first) / (N - 1), N = usage.completion_tokens >= 2
    stall        = the longest gap between two token events of one request
    lag          = t_send - t_sched
    attainment   = requests that met every limit of the SLO / requests planned in the window
    goodput      = requests that met every limit / window length
    output tok/s = tokens whose event was received in the window / window length

A request belongs to the window if it was planned in it. Failed requests have no latency: they
count as infinite in the failure-aware percentiles, and against attainment.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec

from loadtests.campaign import Campaign, Slo
from loadtests.records.record import CellRun, ErrorClass, RequestRecord
from loadtests.plan.cells import Cell
from loadtests.analyse.stats import Quantile, quantile
from serve_app.domain.units import NS_PER_MS, NS_PER_S

PERCENTILES = (0.50, 0.95, 0.99, 0.999)
Metric = Callable[[RequestRecord], float | None]


class LatencySummary(msgspec.Struct, frozen=True):
    """Percentiles of one latency in ms, of the requests that succeeded."""

    quantiles: tuple[Quantile, ...]
    with_failures: tuple[Quantile, ...] | None
    """The same with every failure as infinite; None for a latency that no user waits for."""

    def at(self, p: float) -> Quantile:
        """The percentile `p` among successes; KeyError if it was not computed."""
        for each in self.quantiles:
            if each.p == p:
                return each
        raise KeyError(p)


class VariantSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One variant under one stage, all blocks together. Rates are per second of window."""

    stage: str
    variant: str
    n_planned: int
    n_ok: int
    errors: dict[str, int]
    """Failures by error class."""
    served_by: dict[str, int]
    """Answers by `x-variant`; an answer without the header is not in it."""
    window_s: float
    offered_per_s: float
    achieved_per_s: float
    output_tokens_per_s: float
    attainment: float | None
    goodput_per_s: float | None
    client_cpu_share: float | None
    little_gap: float | None
    peak_in_flight: int | None
    latencies: dict[str, LatencySummary]
    """By name: the keys of `METRICS`."""
    is_valid: bool
    invalid_reasons: tuple[str, ...]


def ttft_user_ms(record: RequestRecord) -> float | None:
    """From the planned send time to the first token."""
    return _between(record.t_sched_ns, record.t_first_ns)


def e2e_user_ms(record: RequestRecord) -> float | None:
    """From the planned send time to the last token."""
    return _between(record.t_sched_ns, record.t_last_ns)


def tpot_ms(record: RequestRecord) -> float | None:
    """Time per output token after the first; None for fewer than two tokens."""
    decode_ms = _between(record.t_first_ns, record.t_last_ns)
    if decode_ms is None or record.output_tokens is None or record.output_tokens < 2:
        return None
    return decode_ms / (record.output_tokens - 1)


def stall_ms(record: RequestRecord) -> float | None:
    """The longest gap between token events; None for fewer than two events."""
    times = record.event_us
    gaps = [after - before for before, after in pairwise(times)]
    return max(gaps) / 1000 if gaps else None


METRICS: Mapping[str, Metric] = {
    "ttft_user_ms": ttft_user_ms,
    "ttft_service_ms": lambda r: _between(r.t_send_ns, r.t_first_ns),
    "e2e_user_ms": e2e_user_ms,
    "e2e_service_ms": lambda r: _between(r.t_send_ns, r.t_last_ns),
    "tpot_ms": tpot_ms,
    "stall_ms": stall_ms,
    "lag_ms": lambda r: _between(r.t_sched_ns, r.t_send_ns),
}
FAILURE_AWARE = ("ttft_user_ms", "e2e_user_ms")


def meets(record: RequestRecord, slo: Slo) -> bool:
    """Whether a request succeeded within every limit. A limit on an undefined TPOT is met."""
    if record.error is not None:
        return False
    limits = ((slo.ttft_ms, ttft_user_ms), (slo.e2e_ms, e2e_user_ms), (slo.tpot_ms, tpot_ms))
    for limit_ms, metric in limits:
        value = metric(record)
        if limit_ms is not None and value is not None and value > limit_ms:
            return False
    return True


def summarize(
    campaign: Campaign,
    cells: Sequence[Cell],
    records: Iterable[RequestRecord],
    runs: Iterable[CellRun],
) -> tuple[VariantSummary, ...]:
    """One summary per stage and variant, in the order of the campaign's file.

    Only cells that ran to their end count: the others have no entry in `runs`.
    """
    by_cell: dict[int, list[RequestRecord]] = {}
    for record in records:
        by_cell.setdefault(record.cell, []).append(record)
    run_of = {run.cell: run for run in runs}
    summaries = []
    for stage in campaign.stages:
        for variant in campaign.variant_names():
            done = [
                (cell, run_of[cell.index], by_cell.get(cell.index, []))
                for cell in cells
                if (cell.stage, cell.variant) == (stage.name, variant) and cell.index in run_of
            ]
            if done:
                summaries.append(_summarize_variant(campaign, stage.name, variant, done))
    return tuple(summaries)


def _summarize_variant(
    campaign: Campaign,
    stage: str,
    variant: str,
    done: Sequence[tuple[Cell, CellRun, list[RequestRecord]]],
) -> VariantSummary:
    measured = sorted(
        (r for _, _, records in done for r in records if r.phase == "measured"),
        key=lambda r: r.t_sched_ns,
    )
    planned = sum(r.phase == "measured" for cell, _, _ in done for r in cell.requests)
    ok = [r for r in measured if r.error is None]
    window_s = sum(cell.window_s for cell, _, _ in done)
    n_good = None if campaign.slo is None else sum(meets(r, campaign.slo) for r in measured)
    sent = [r for r in measured if r.t_send_ns is not None]
    latencies = {
        name: _latency(name, metric, sent if name == "lag_ms" else ok, planned - len(ok))
        for name, metric in METRICS.items()
    }
    little_gap = max((_little_gap(run, records) for _, run, records in done), default=None)
    cpu_share = max(run.cpu_s * NS_PER_S / (run.t_end_ns - run.t_start_ns) for _, run, _ in done)
    achieved = sum(r.t_send_ns is not None for r in measured) / window_s
    summary = VariantSummary(
        stage=stage,
        variant=variant,
        n_planned=planned,
        n_ok=len(ok),
        errors=dict(Counter(str(r.error) for r in measured if r.error is not None)),
        served_by=dict(Counter(r.served_variant for r in measured if r.served_variant)),
        window_s=window_s,
        offered_per_s=planned / window_s,
        achieved_per_s=achieved,
        output_tokens_per_s=sum(_tokens_in_window(*each) for each in done) / window_s,
        attainment=None if n_good is None else n_good / planned,
        goodput_per_s=None if n_good is None else n_good / window_s,
        client_cpu_share=cpu_share,
        little_gap=little_gap,
        peak_in_flight=max(run.peak_in_flight for _, run, _ in done),
        latencies=latencies,
        is_valid=True,
        invalid_reasons=(),
    )
    reasons = tuple(_invalid_reasons(campaign, summary))
    return msgspec.structs.replace(summary, is_valid=not reasons, invalid_reasons=reasons)


def _latency(
    name: str, metric: Metric, records: Sequence[RequestRecord], n_failures: int
) -> LatencySummary:
    samples = [value for value in map(metric, records) if value is not None]
    return LatencySummary(
        quantiles=tuple(quantile(samples, p) for p in PERCENTILES),
        with_failures=(
            tuple(quantile(samples, p, n_failures) for p in PERCENTILES)
            if name in FAILURE_AWARE
            else None
        ),
    )


def _tokens_in_window(cell: Cell, run: CellRun, records: Iterable[RequestRecord]) -> float:
    """Output tokens received in the window, from requests of any phase.

    An event counts for `N / events` tokens: engines may send several tokens in one event.
    """
    start_ns, end_ns = (run.t_start_ns + offset_ns for offset_ns in cell.window_ns)
    total = 0.0
    for record in records:
        if record.t_first_ns is None or not record.output_tokens or not record.event_us:
            continue
        first_ns = record.t_first_ns
        inside = sum(start_ns <= first_ns + us * 1000 < end_ns for us in record.event_us)
        total += inside * record.output_tokens / len(record.event_us)
    return total


def _little_gap(run: CellRun, records: Iterable[RequestRecord]) -> float:
    """`|L - lambda W| / L` over a cell, from empty to empty, where the law is exact.

    L is the pacer's count of open requests over time; lambda W is the sum of the records'
    stays. They part when records are lost or stamped on another path than the requests took.
    """
    stays_ns = sum(
        r.t_end_ns - r.t_send_ns
        for r in records
        if r.t_send_ns is not None and r.t_end_ns is not None
    )
    if run.in_flight_ns == 0:
        return 0.0 if stays_ns == 0 else 1.0
    return abs(run.in_flight_ns - stays_ns) / run.in_flight_ns


def _invalid_reasons(campaign: Campaign, summary: VariantSummary) -> Iterable[str]:
    """Why these numbers say nothing of the server: mostly what the client did to them."""
    limits = campaign.validity
    if not summary.n_ok:
        yield f"none of {summary.n_planned} requests succeeded"
    refused = summary.errors.get(ErrorClass.REFUSED_BY_CLIENT, 0)
    if summary.achieved_per_s < limits.achieved_share * summary.offered_per_s:
        yield (
            f"sent {summary.achieved_per_s:.1f}/s of {summary.offered_per_s:.1f}/s "
            f"({refused} refused at in_flight_cap {campaign.in_flight_cap})"
        )
    lag = _highest_known(summary.latencies["lag_ms"])
    if lag is not None and lag.value is not None:
        text = f"lag P{lag.p * 100:g} {lag.value:.1f} ms"
        if lag.value > limits.lag_p99_ms:
            yield f"{text} > {limits.lag_p99_ms:g} ms: give the client a core of its own"
        ttft_ms = summary.latencies["ttft_service_ms"].at(0.50).value
        if ttft_ms is not None and lag.value > limits.lag_share_of_ttft * ttft_ms:
            yield f"{text} > {limits.lag_share_of_ttft:.0%} of TTFT P50 {ttft_ms:.1f} ms"
    cpu = summary.client_cpu_share
    if cpu is not None and cpu > limits.client_cpu_share:
        yield f"client CPU {cpu:.0%} of a core > {limits.client_cpu_share:.0%}"
    if summary.little_gap is not None and summary.little_gap > limits.little_gap:
        yield f"Little's law is off by {summary.little_gap:.1%} > {limits.little_gap:.0%}"


def _highest_known(latency: LatencySummary) -> Quantile | None:
    """P99 where the sample supports it, else P95, else P50."""
    known = [q for q in latency.quantiles if q.value is not None and q.p <= 0.99]
    return known[-1] if known else None


def _between(start_ns: int | None, end_ns: int | None) -> float | None:
    if start_ns is None or end_ns is None:
        return None
    return (end_ns - start_ns) / NS_PER_MS
