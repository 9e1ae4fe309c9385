"""One summary as the cells of a table: how a number, or its absence, is written."""

import math

from loadtests.analyse.stats import Quantile
from loadtests.analyse.summary import LatencySummary, VariantSummary

HEADERS = (
    "ok",
    "TTFT P50",
    "P95",
    "P99",
    "E2E P50",
    "P95",
    "P99",
    "TPOT P50",
    "tok/s",
    "in SLO",
)


def cells_of(row: VariantSummary) -> tuple[str, ...]:
    """The cells under `HEADERS`. User latencies are failure-aware, TPOT is of successes."""
    ttft, e2e = (_failure_aware(row.latencies[name]) for name in ("ttft_user_ms", "e2e_user_ms"))
    return (
        f"{row.n_ok}/{row.n_planned}",
        *ttft,
        *e2e,
        number(row.latencies["tpot_ms"].at(0.50).value),
        number(row.output_tokens_per_s),
        "-" if row.attainment is None else f"{100 * row.attainment:.3g}%",
    )


TERMINAL_HEADERS = ("TTFT P50", "TTFT P95", "TTFT P99", "E2E P50", "E2E P95", "E2E P99", "tok/s")
"""What fits in 80 columns beside a variant's name, bytes and quality; the report has the rest."""


def terminal_cells_of(row: VariantSummary) -> tuple[str, ...]:
    """The cells under `TERMINAL_HEADERS`."""
    _, *latencies, _, tokens_per_s, _ = cells_of(row)
    return (*latencies, tokens_per_s)


def number(value: float | None) -> str:
    """Three significant digits; `-` for none, `∞` for infinite."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "∞"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def with_interval(q: Quantile) -> str:
    """`58.3 [55.1, 60.2]`; an open end where the sample has no bound; `-` for no value."""
    if q.value is None or math.isinf(q.value):
        return number(q.value)
    low = "…" if q.low is None else number(q.low)
    high = "…" if q.high is None else number(q.high)
    return f"{number(q.value)} [{low}, {high}]"


def _failure_aware(latency: LatencySummary) -> tuple[str, ...]:
    quantiles = latency.with_failures or latency.quantiles
    return tuple(number(q.value) for q in quantiles if q.p < 0.999)
