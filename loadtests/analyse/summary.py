"""From raw records to the rows of a report. `metrics.FORMULAS` says what each number is.

Only whole cells count. A request belongs to the window if it was planned in it. Failed requests
have no latency: they count as infinite in the failure-aware percentiles, and against attainment.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from loadtests.analyse import gaps
from loadtests.analyse.attainment import fails_at_best, judge, share_of
from loadtests.analyse.metrics import LATENCIES, Latency
from loadtests.analyse.nouns import LatencySummary, VariantSummary, Verdict
from loadtests.analyse.stats import Quantile, quantile, quantiles
from loadtests.analyse.validity import client_cpu_share, invalid_reasons, little_gap, notes
from loadtests.analyse.whole import WholeCell, whole_cells
from loadtests.campaign import Campaign
from loadtests.records.record import CellPlan, CellRun, RequestRecord

CellsByRow = dict[tuple[str, str], list[WholeCell]]


def summarize(
    campaign: Campaign,
    plans: Sequence[CellPlan],
    records: Iterable[RequestRecord],
    runs: Sequence[CellRun],
    n_workers: int,
) -> tuple[VariantSummary, ...]:
    """One row per stage and variant that has a whole cell.

    Stages in the order of the campaign (by rising rate in a search), then variants in its order.
    """
    return summarize_cells(campaign, whole_cells(plans, records, runs, n_workers))


def summarize_cells(campaign: Campaign, cells: Sequence[WholeCell]) -> tuple[VariantSummary, ...]:
    """`summarize`, of cells that are known to be whole."""
    rows = rows_of(campaign, cells)
    return tuple(_row(campaign, *row, of_row) for row, of_row in rows.items())


def rows_of(campaign: Campaign, cells: Sequence[WholeCell]) -> CellsByRow:
    """Cells by stage and variant, in the order of the rows of a report."""
    if campaign.search is None:
        stages = [stage.name for stage in campaign.stages]
    else:
        rates = {cell.plan.stage: cell.plan.rate_per_s or 0.0 for cell in cells}
        stages = sorted(rates, key=rates.__getitem__)
    rows: CellsByRow = {(stage, name): [] for stage in stages for name in campaign.variant_names()}
    for cell in cells:
        rows[cell.plan.stage, cell.plan.variant].append(cell)
    return {row: of_row for row, of_row in rows.items() if of_row}


def _row(
    campaign: Campaign, stage: str, variant: str, cells: Sequence[WholeCell]
) -> VariantSummary:
    measured = [r for cell in cells for r in cell.measured]
    ok = [r for r in measured if r.error is None]
    planned = sum(cell.n_planned for cell in cells)
    window_s = sum(cell.plan.window_s for cell in cells)
    attainment = (
        None if campaign.slo is None else share_of([cell.passes(campaign.slo) for cell in cells])
    )
    row = VariantSummary(
        stage=stage,
        variant=variant,
        rate_per_s=cells[0].plan.rate_per_s,
        concurrency=cells[0].plan.concurrency,
        n_planned=planned,
        n_ok=len(ok),
        errors=dict(Counter(str(r.error) for r in measured if r.error is not None)),
        served_by=dict(Counter(r.served_variant for r in measured if r.served_variant)),
        kinds=dict(Counter(r.kind for r in measured if r.kind)),
        window_s=window_s,
        offered_per_s=planned / window_s,
        achieved_per_s=sum(r.t_send_ns is not None for r in measured) / window_s,
        output_tokens_per_s=sum(tokens_in_window(cell) for cell in cells) / window_s,
        input_tokens=_median([r.prompt_tokens for r in ok]),
        output_tokens=_median([r.output_tokens for r in ok]),
        attainment=attainment,
        goodput_per_s=None if attainment is None else attainment.k / window_s,
        slo_verdict=None,
        slo_reason=None,
        client_cpu_share=client_cpu_share(cells),
        little_gap=max(little_gap(cell) for cell in cells),
        peak_in_flight=max(sum(run.peak_in_flight for run in cell.runs) for cell in cells),
        latencies=latencies_of(cells),
        is_valid=True,
        invalid_reasons=(),
    )
    return _judged(campaign, row, cells)


def _judged(campaign: Campaign, row: VariantSummary, cells: Sequence[WholeCell]) -> VariantSummary:
    """`row` with its validity and notes, and with the verdict on its SLO where there is one.

    A server that hangs fills the client, and that is no excuse: it fails if it would do so had
    all requests that were never sent met the SLO.
    """
    verdict, why, server_fails = None, None, False
    if campaign.slo is not None and row.attainment is not None:
        verdict, why = judge(row.attainment, campaign.slo.attainment)
        sent = share_of([cell.passes_sent(campaign.slo) for cell in cells])
        fails = fails_at_best(sent, row.n_planned - sent.n, campaign.slo.attainment)
        server_fails = fails is not None
        if fails is not None:
            verdict, why = Verdict.FAIL, fails
    reasons = tuple(invalid_reasons(campaign, row, cells, server_fails=server_fails))
    if verdict is not None and reasons:
        verdict, why = Verdict.INVALID, "; ".join(reasons)
    return msgspec.structs.replace(
        row,
        is_valid=not reasons,
        invalid_reasons=reasons,
        notes=tuple(notes(campaign, row, cells, server_fails=server_fails)),
        slo_verdict=verdict,
        slo_reason=why,
    )


def latencies_of(cells: Sequence[WholeCell]) -> dict[str, LatencySummary]:
    """Every latency of the cells together: the keys of `LATENCIES`, `itl_ms` and `icl_ms`."""
    ok = [r for cell in cells for r in cell.measured if r.error is None]
    return {
        **{name: _latency(latency, cells) for name, latency in LATENCIES.items()},
        "itl_ms": gaps.summary_of(gaps.itl_ms(ok)),
        "icl_ms": gaps.summary_of(gaps.icl_ms(ok)),
    }


def _latency(latency: Latency, cells: Sequence[WholeCell]) -> LatencySummary:
    successes = [successful(latency, cell) for cell in cells]
    n = sum(map(len, successes))
    of_successes = quantiles(successes, bootstrap=latency.has_bootstrap)
    with_failures = None
    if latency.counts_failures:
        everything = [with_failed(latency, cell) for cell in cells]
        has_failures = sum(map(len, everything)) > n
        with_failures = quantiles(everything, bootstrap=True) if has_failures else of_successes
    mean = math.fsum(value for cell in successes for value in cell) / n if n else None
    return LatencySummary(quantiles=of_successes, with_failures=with_failures, mean=mean)


def successful(latency: Latency, cell: WholeCell) -> list[float]:
    """Values of the requests of the window that succeeded; of the lag, of all that were sent."""
    is_lag = latency is LATENCIES["lag_ms"]
    values = [latency.of(r) for r in cell.measured if is_lag or r.error is None]
    return [value for value in values if value is not None]


def with_failed(latency: Latency, cell: WholeCell) -> list[float]:
    """Values of all planned requests of the window, in order; a failure is infinite."""
    values = [math.inf if r.error is not None else latency.of(r) for r in cell.measured]
    n_missing = cell.n_planned - len(values)
    return [value for value in values if value is not None] + [math.inf] * n_missing


def tokens_in_window(cell: WholeCell) -> float:
    """Output tokens received in the window, from requests of any phase.

    An event counts for `N / events` tokens: engines may send several tokens in one event.
    """
    start_ns, end_ns = cell.plan.window_ns
    total = 0.0
    for r in cell.records:
        if r.t_first_ns is None or not r.output_tokens or not r.event_us:
            continue
        since, until = (start_ns - r.t_first_ns) / 1000, (end_ns - r.t_first_ns) / 1000
        inside = bisect_left(r.event_us, until) - bisect_left(r.event_us, since)
        total += inside * r.output_tokens / len(r.event_us)
    return total


def _median(counts: Sequence[int | None]) -> Quantile:
    return quantile([float(n) for n in counts if n is not None], 0.50)
