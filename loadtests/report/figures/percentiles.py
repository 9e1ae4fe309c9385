"""P50 to P99.9 of every variant with intervals, stage by stage."""

import math
from collections.abc import Sequence
from typing import Any

from loadtests.analyse.nouns import VariantSummary
from loadtests.analyse.stats import Quantile
from loadtests.report.figures.style import (
    BAD,
    Picture,
    add_legend,
    colour_of,
    is_wide,
    log_axis,
    marker_of,
    new_figure,
)
from loadtests.report.result import CampaignResult
from loadtests.report.rows import percentile_name
from loadtests.report.stages import StageRows, stage_rows, variants_of

PANELS = (("ttft_user_ms", "TTFT"), ("e2e_user_ms", "E2E"), ("tpot_ms", "TPOT"))
DODGE = 0.11


def draw_percentiles(result: CampaignResult) -> Picture | None:
    """One row per stage, one panel per metric, one line per variant."""
    groups = [each for each in stage_rows(result) if not each.is_search]
    if not groups:
        return None
    figure = new_figure(0.6 + 2.3 * len(groups))
    variants = variants_of(result)
    grid = figure.subplots(len(groups), len(PANELS), squeeze=False)
    for axes_row, group in zip(grid, groups, strict=True):
        for axes, (metric, title) in zip(axes_row, PANELS, strict=True):
            _draw_panel(axes, group, variants, metric)
            axes.set_title(f"{title}, {group.rows[0].stage}")
        axes_row[0].set_ylabel("ms")
    add_legend(figure, variants, linestyle="-")
    return Picture(
        name="percentiles",
        title="Latency percentiles",
        caption="Exact nearest-rank percentiles with 95 % intervals. TTFT and E2E count from the "
        "planned send time, and each failure as infinite (∞); TPOT is of successes. A percentile "
        "that the sample cannot support is left out.",
        alt="Percentiles P50 to P99.9 of TTFT, E2E and TPOT per stage and variant; the numbers "
        "are in the table of latencies.",
        figure=figure,
    )


def _draw_panel(axes: Any, group: StageRows, variants: Sequence[str], metric: str) -> None:
    shown = [q for row in group.rows for q in _quantiles(row, metric)]
    ps = sorted({q.p for q in shown if q.value is not None})
    values = [q.value for q in shown if q.value is not None and math.isfinite(q.value)]
    for row in group.rows:
        i = variants.index(row.variant)
        dodge = (i - (len(variants) - 1) / 2) * min(DODGE, 0.7 / len(variants))
        known = [q for q in _quantiles(row, metric) if q.value is not None]
        _draw_line(axes, known, ps, dodge, i)
    axes.set_xticks(range(len(ps)), [percentile_name(p) for p in ps])
    axes.set_xlim(-0.6, max(1, len(ps)) - 0.4)
    axes.grid(visible=False, axis="x")
    if is_wide(values):
        log_axis(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    if any(q.value is not None and math.isinf(q.value) for q in shown):
        _leave_room(axes)


def _leave_room(axes: Any) -> None:
    """Above the highest value, for the marks of infinite ones."""
    low, high = axes.get_ylim()
    is_log = axes.get_yscale() == "log"
    axes.set_ylim(top=high * (high / low) ** 0.2 if is_log else high + 0.2 * (high - low))


def _draw_line(
    axes: Any, quantiles: Sequence[Quantile], ps: Sequence[float], dodge: float, i: int
) -> None:
    known = [
        (ps.index(q.p) + dodge, q)
        for q in quantiles
        if q.value is not None and math.isfinite(q.value)
    ]
    colour = colour_of(i)
    axes.plot([x for x, _ in known], [q.value for _, q in known], color=colour, alpha=0.45)
    for x, q in known:
        low = q.value if q.low is None else q.low
        high = q.value if q.high is None or math.isinf(q.high) else q.high
        axes.plot([x, x], [low, high], color=colour, linewidth=3.5, alpha=0.35)
        axes.plot([x], [q.value], color=colour, marker=marker_of(i), markersize=4.5)
    for q in quantiles:
        if q.value is not None and math.isinf(q.value):
            place = (ps.index(q.p) + dodge, 0.97)
            axes.text(
                *place, "∞", color=colour, ha="center", va="top", fontsize=13, weight="bold",
                transform=axes.get_xaxis_transform(), bbox={"facecolor": "none", "edgecolor": BAD,
                "boxstyle": "round,pad=0.08", "linewidth": 0.7},
            )  # fmt: skip


def _quantiles(row: VariantSummary, metric: str) -> tuple[Quantile, ...]:
    latency = row.latencies[metric]
    return latency.with_failures or latency.quantiles
