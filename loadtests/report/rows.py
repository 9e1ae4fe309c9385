"""How every view writes a number, its interval, or its absence; and one summary as table cells."""

import math

from loadtests.analyse.nouns import (
    SHARES,
    Comparison,
    LatencySummary,
    Saturation,
    Share,
    VariantSummary,
)
from loadtests.analyse.stats import Quantile

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

LABELS = {
    "ttft_user_ms": "TTFT",
    "ttft_service_ms": "TTFT, service",
    "e2e_user_ms": "E2E",
    "e2e_service_ms": "E2E, service",
    "tpot_ms": "TPOT",
    "ntpot_ms": "NTPOT",
    "itl_ms": "ITL",
    "icl_ms": "ICL",
    "stall_ms": "stall",
    "lag_ms": "lag",
    "output_tokens_per_s": "tok/s",
    "goodput_per_s": "goodput",
    "attainment": "in SLO",
    "error_rate": "failed",
    "highest_rate_per_s": "highest rate/s",
}
"""Short names of metrics; one that is not here goes by its own name."""


def cells_of(row: VariantSummary) -> tuple[str, ...]:
    """The cells under `HEADERS`. User latencies are failure-aware, TPOT is of successes."""
    ttft, e2e = (_failure_aware(row.latencies[name]) for name in ("ttft_user_ms", "e2e_user_ms"))
    return (
        f"{row.n_ok}/{row.n_planned}",
        *ttft,
        *e2e,
        number(row.latencies["tpot_ms"].at(0.50).value),
        number(row.output_tokens_per_s),
        share_of(row.attainment),
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
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def interval(low: float | None, high: float | None) -> str:
    """`[55.1, 60.2]`; `…` is an end that the sample does not have."""
    ends = ("…" if end is None else number(end) for end in (low, high))
    return f"[{', '.join(ends)}]"


def with_interval(q: Quantile) -> str:
    """`58.3 [55.1, 60.2]`; an open end where the sample has no bound; `-` for no value."""
    if q.value is None or math.isinf(q.value):
        return number(q.value)
    return f"{number(q.value)} {interval(q.low, q.high)}"


def percent(share: float | None) -> str:
    """`98.5%`; `>99.9%` where rounding would hide the last failure; `-` for none."""
    if share is None:
        return "-"
    shown = f"{100 * share:.3g}"
    return ">99.9%" if shown == "100" and share < 1 else f"{shown}%"


def share_of(share: Share | None) -> str:
    """A share of requests without its interval; `-` for none."""
    return "-" if share is None or share.n == 0 else percent(share.k / share.n)


def share_with_interval(share: Share | None) -> str:
    """`98.5% [96.1%, 99.6%]`; `-` for none."""
    if share is None or share.n == 0:
        return "-"
    return f"{share_of(share)} [{percent(share.low)}, {percent(share.high)}]"


def percentile_name(p: float | None) -> str:
    """`P99.9`; `mean` for None."""
    return "mean" if p is None else f"P{p * 100:g}"


def metric_name(each: Comparison) -> str:
    """`TTFT P99`; a rate or a share goes by its name alone."""
    return name_of(each.metric, each.p)


def name_of(metric: str, p: float | None) -> str:
    """`metric_name` of a metric and its percentile; `p` None is the mean of a latency."""
    label = LABELS.get(metric, metric)
    return f"{label} {percentile_name(p)}" if metric.endswith("_ms") or p is not None else label


def ratio(each: Comparison) -> str:
    """`0.93× [0.90, 0.97]`, of a share its difference; as `short_ratio` where there is none."""
    if each.difference is not None:
        return points_with_interval(each.difference, each.low, each.high)
    if each.ratio is None:
        return short_ratio(each)
    return factor_with_interval(each.ratio, each.low, each.high)


def factor_with_interval(value: float, low: float | None, high: float | None) -> str:
    """`0.93× [0.90, 0.97]`; `…` is an end that is not known."""
    return f"{_factor(value)}× [{_factor(low)}, {_factor(high)}]"


def points_with_interval(value: float, low: float | None, high: float | None) -> str:
    """A difference of shares in percentage points: `+0.4 [-0.1, +0.9] pp`."""
    ends = ("…" if end is None else f"{100 * end:+.2g}" for end in (low, high))
    return f"{100 * value:+.2g} [{', '.join(ends)}] pp"


def short_ratio(each: Comparison) -> str:
    """`0.93×`, of a share `+0.4 pp`; `∞` where failures reach the variant's percentile; `-` where
    there is none.
    """
    if each.difference is not None:
        return f"{100 * each.difference:+.2g} pp"
    if each.ratio is None:
        after = each.values[1]
        return "∞" if after is not None and math.isinf(after) else "-"
    return f"{_factor(each.ratio)}×"


def value_of(metric: str, value: float | None) -> str:
    """One side of a comparison: a percentage for a share."""
    return percent(value) if metric in SHARES else number(value)


def probability(value: float | None) -> str:
    """`0.013`, `<0.001`; `-` for none."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def failed_of(row: VariantSummary) -> str:
    """`45 (5.3%)`, of the planned requests, those without a record included; `0` for none."""
    n_failed = row.n_planned - row.n_ok
    return f"{n_failed} ({percent(n_failed / row.n_planned)})" if n_failed else "0"


def errors_of(row: VariantSummary) -> str:
    """`timeout 3, connect 1`, most frequent first; `0` for none."""
    by_count = sorted(row.errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {n}" for name, n in by_count) or "0"


def bracket(found: Saturation) -> str:
    """What the SLO does: `holds at 4.00, not at 4.40 requests/s`."""
    passed, failed = found.highest_passed_per_s, found.lowest_failed_per_s
    if passed is None and failed is None:
        return "is not known to hold"
    if passed is None:
        return f"does not hold at {number(failed)} requests/s, the lowest tried"
    if failed is None:
        return f"holds at {number(passed)} requests/s, the highest tried"
    return f"holds at {number(passed)}, not at {number(failed)} requests/s"


def _factor(value: float | None) -> str:
    if value is None:
        return "…"
    return number(value) if math.isinf(value) or value >= 10 else f"{value:.2f}"


def _failure_aware(latency: LatencySummary) -> tuple[str, ...]:
    quantiles = latency.with_failures or latency.quantiles
    by_p = {q.p: q for q in quantiles}
    return tuple(number(by_p[p].value) for p in (0.50, 0.95, 0.99))
