"""`summary.csv`: one row per stage, variant and metric, for spreadsheets and data frames."""

import csv
import io
import math
from collections.abc import Iterator

from loadtests.analyse.nouns import VariantSummary
from loadtests.analyse.stats import Quantile
from loadtests.report.result import CampaignResult
from loadtests.report.rows import percentile_name

HEADER = (
    "stage",
    "variant",
    "offered_per_s",
    "metric",
    "statistic",
    "failures",
    "value",
    "low",
    "high",
    "n",
    "is_valid",
    "reason",
)
"""`failures`: `left_out` or `infinite`. Empty cells are missing values; `inf` is infinite."""

RATES = (
    "n_planned",
    "n_ok",
    "achieved_per_s",
    "output_tokens_per_s",
    "goodput_per_s",
    "client_cpu_share",
    "little_gap",
    "peak_in_flight",
)


def render_csv(result: CampaignResult) -> str:
    """The text of `summary.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row in result.summaries:
        for cells in _rows(row):
            writer.writerow([_cell(value) for value in _with_row(row, cells)])
    return text.getvalue()


Cells = tuple[object, ...]
"""metric, statistic, failures, value, low, high, n, reason."""


def _with_row(row: VariantSummary, cells: Cells) -> Cells:
    *measured, reason = cells
    return (row.stage, row.variant, row.offered_per_s, *measured, row.is_valid, reason)


def _rows(row: VariantSummary) -> Iterator[Cells]:
    for name in RATES:
        yield (name, "value", None, getattr(row, name), None, None, None, None)
    if row.attainment is not None:
        share = row.attainment
        value = share.k / share.n if share.n else None
        yield ("attainment", "value", "infinite", value, share.low, share.high, share.n, None)
    for error, n_failed in row.errors.items():
        yield (f"errors.{error}", "count", None, n_failed, None, None, row.n_planned, None)
    for name in ("input_tokens", "output_tokens"):
        yield _of_quantile(name, getattr(row, name), "left_out")
    for name, latency in row.latencies.items():
        n = latency.quantiles[0].n if latency.quantiles else None
        yield (name, "mean", "left_out", latency.mean, None, None, n, None)
        for q in latency.quantiles:
            yield _of_quantile(name, q, "left_out")
        for q in latency.with_failures or ():
            yield _of_quantile(name, q, "infinite")


def _of_quantile(name: str, q: Quantile, failures: str) -> Cells:
    return (name, percentile_name(q.p), failures, q.value, q.low, q.high, q.n, q.reason)


def _cell(value: object) -> object:
    """Full precision. Text that a spreadsheet would run as a formula is made plain text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "inf" if math.isinf(value) else repr(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value
