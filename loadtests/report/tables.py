"""The tables of a report as plain data: the page, the Markdown and nothing else renders them."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.analyse.nouns import Change, Comparison, LatencySummary, Verdict
from loadtests.analyse.ratios import TAIL
from loadtests.analyse.stats import MIN_SAMPLES
from loadtests.campaign import ValidityLimits
from loadtests.report.findings import decisive
from loadtests.report.result import CampaignResult
from loadtests.report.rows import (
    HEADERS,
    LABELS,
    bracket,
    cells_of,
    errors_of,
    failed_of,
    metric_name,
    number,
    percent,
    percentile_name,
    probability,
    ratio,
    share_with_interval,
    short_ratio,
    value_of,
    with_interval,
)
from loadtests.report.samples import Failure
from loadtests.report.stages import StageRows


@dataclass(frozen=True)
class Cell:
    """The text of one cell, and what it says of itself."""

    text: str
    tone: str | None = None
    """A change or a verdict, which views colour besides saying it."""
    title: str | None = None


@dataclass(frozen=True)
class Table:
    """A table with a heading row; the first `n_names` columns name the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n_names: int = 1


MARKS: dict[Change | Verdict, str] = {
    Change.BETTER: "▲ better",
    Change.WORSE: "▼ worse",
    Change.SAME: "= same",
    Change.INCONCLUSIVE: "? inconclusive",
}
"""A colour alone says nothing to many readers."""


def cells(*texts: str) -> tuple[Cell, ...]:
    """Cells of plain text."""
    return tuple(Cell(text) for text in texts)


def summary_table(result: CampaignResult, group: StageRows) -> Table:
    """One row per variant: what the terminal shows, and what was wrong."""
    columns = result.manifest.columns
    header = ("variant", *columns, *_whole_headers(), "goodput/s", "failed", "SLO", "client")
    rows = []
    for row in group.rows:
        extra = [of.get(row.variant, "-") for of in columns.values()]
        slo = row.slo_verdict
        verdict = Cell("-" if slo is None else str(slo), slo, row.slo_reason)
        valid = Cell("valid") if row.is_valid else Cell("INVALID", Verdict.INVALID)
        plain = (group.label(row), *extra, *cells_of(row), number(row.goodput_per_s))
        failed = Cell(failed_of(row), Verdict.FAIL if row.errors else None, errors_of(row))
        rows.append((*cells(*plain), failed, verdict, valid))
    return Table(f"Summary of {group.title}: latencies in ms", header, tuple(rows))


def _whole_headers() -> tuple[str, ...]:
    """`HEADERS` for tables in which columns may be read one by one: `P95` names its metric."""
    metric, found = "", []
    for header in HEADERS:
        if header.startswith(("TTFT", "E2E")):
            metric = header.split()[0]
        found.append(f"{metric} {header}" if header.startswith("P") else header)
    return tuple(found)


def latency_table(group: StageRows) -> Table:
    """Every latency with its intervals; failure-aware ones besides."""
    ps = [q.p for q in group.rows[0].latencies["ttft_user_ms"].quantiles]
    rows = []
    for row in group.rows:
        for name, latency in row.latencies.items():
            label = LABELS.get(name, name)
            who = group.label(row)
            rows.append((*cells(who, label), *_latency_cells(latency, ps, aware=False)))
            if latency.with_failures is not None and row.n_ok < row.n_planned:
                aware = _latency_cells(latency, ps, aware=True)
                rows.append((*cells(who, f"{label}, failures infinite"), *aware))
    header = ("variant", "metric", "n", *map(percentile_name, ps), "mean")
    caption = f"Latencies of {group.title}, ms, with 95 % intervals"
    return Table(caption, header, tuple(rows), n_names=2)


def _latency_cells(
    latency: LatencySummary, ps: Sequence[float], *, aware: bool
) -> tuple[Cell, ...]:
    quantiles = (latency.with_failures or ()) if aware else latency.quantiles
    by_p = {q.p: q for q in quantiles}
    shown = [
        Cell(with_interval(by_p[p]), title=by_p[p].reason or by_p[p].note)
        if p in by_p
        else Cell("-")
        for p in ps
    ]
    n = str(quantiles[0].n) if quantiles else "-"
    return (Cell(n), *shown, Cell("-" if aware else number(latency.mean)))


def client_table(group: StageRows, limits: ValidityLimits) -> Table:
    """What the client did, beside the limits beyond which a row is invalid."""
    header = (
        "variant",
        "offered/s",
        "sent/s",
        f"lag P99, ms (limit {limits.lag_p99_ms:g})",
        f"client CPU (limit {limits.client_cpu_share:.0%})",
        f"Little gap (limit {limits.little_gap:.0%})",
        "most in flight",
        "verdict",
    )
    rows = []
    for row in group.rows:
        lag = row.latencies["lag_ms"].at(0.99).value
        why = "; ".join(row.invalid_reasons)
        verdict = Cell("valid") if row.is_valid else Cell(f"INVALID: {why}", Verdict.INVALID)
        plain = (
            group.label(row),
            number(row.offered_per_s),
            number(row.achieved_per_s),
            number(lag),
            percent(row.client_cpu_share),
            percent(row.little_gap),
            "-" if row.peak_in_flight is None else str(row.peak_in_flight),
        )
        rows.append((*cells(*plain), verdict))
    return Table(f"The client at {group.title}", header, tuple(rows))


def overview_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Who is better where: one row per stage and variant, the decisive metrics as columns."""
    stages = dict.fromkeys(each.stage for each in comparisons)
    shown = {s: decisive(e for e in comparisons if e.stage == s) for s in stages}
    metrics = list(dict.fromkeys(each.metric for found in shown.values() for each in found))
    if not metrics:
        return None
    rows = []
    for stage, found in shown.items():
        for variant in dict.fromkeys(each.variant for each in found):
            mine = {each.metric: each for each in found if each.variant == variant}
            row = [_overview_cell(mine.get(metric)) for metric in metrics]
            rows.append((*cells(stage, variant), *row))
    header = ("stage", "variant", *(LABELS.get(metric, metric) for metric in metrics))
    caption = f"Against {comparisons[0].baseline}: ratio (of shares: points) and change"
    return Table(caption, header, tuple(rows), n_names=2)


def _overview_cell(each: Comparison | None) -> Cell:
    if each is None:
        return Cell("-")
    p = "" if each.p is None else f"{percentile_name(each.p)} "
    return Cell(f"{p}{short_ratio(each)} {MARKS[each.change]}", each.change, each.reason)


def failure_table(failures: Sequence[Failure]) -> Table:
    """What failed, with what the client was told."""
    rows = tuple(
        cells(each.stage, each.variant, each.error, str(each.n), each.detail) for each in failures
    )
    header = ("stage", "variant", "class", "requests", "detail")
    return Table("Failures, most frequent first", header, rows, n_names=3)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Every comparison with its interval, its significance and its noise floor.

    The effect is a ratio; of a share, the difference in percentage points (pp).
    """
    rows = []
    for each in comparisons:
        before, after = each.values
        plain = (
            each.stage,
            each.variant,
            metric_name(each),
            value_of(each.metric, before),
            value_of(each.metric, after),
            ratio(each),
        )
        rest = (
            probability(each.p_adjusted),
            probability(each.p_sign_flip),
            "-" if each.noise_floor is None else f"{each.noise_floor:.3f}×",
            str(each.n_blocks),
            each.reason,
        )
        rows.append((*cells(*plain), Cell(MARKS[each.change], each.change), *cells(*rest)))
    header = (
        "stage", "variant", "metric", "baseline", "value", "effect", "change", "p (Holm)",
        "p (sign flip)", "noise floor", "blocks", "reason",
    )  # fmt: skip
    baseline = comparisons[0].baseline if comparisons else ""
    caption = f"Comparisons with {baseline}, paired by block{_without_tail(comparisons)}"
    return Table(caption, header, tuple(rows), n_names=3)


def _without_tail(comparisons: Sequence[Comparison]) -> str:
    """`; no P99 at low: it needs 100 requests in every cell`; empty where all stages have it."""
    has_tail = {each.stage for each in comparisons if each.p == TAIL}
    stages = dict.fromkeys(each.stage for each in comparisons if each.stage not in has_tail)
    need = f"it needs {MIN_SAMPLES[TAIL]} requests in every cell"
    return f"; no P99 at {', '.join(stages)}: {need}" if stages else ""


def saturation_table(result: CampaignResult) -> Table:
    """Per variant the bracket of the highest rate that meets the SLO."""
    rows = tuple(
        (
            *cells(each.variant, bracket(each)),
            Cell(str(each.verdict), each.verdict),
            Cell(each.reason),
        )
        for each in result.saturation
    )
    return Table(
        "Highest rate at which the SLO holds", ("variant", "the SLO", "verdict", "reason"), rows
    )


def probe_table(result: CampaignResult) -> Table:
    """Every rate that the search tried."""
    rows = tuple(
        (
            *cells(each.variant, number(p.rate_per_s), str(p.n_cells)),
            Cell(share_with_interval(p.attainment)),
            Cell(str(p.verdict), p.verdict),
        )
        for each in result.saturation
        for p in each.probes
    )
    header = ("variant", "requests/s", "cells", "in SLO", "verdict")
    return Table("Probes of the search", header, rows)
