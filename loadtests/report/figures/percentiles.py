"""P50 to P99.9 of every variant with intervals, stage by stage."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

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
            axes.set_title(f"{title}, {group.name}")
        axes_row[0].set_ylabel("ms")
    add_legend(figure, variants, linestyle="-")
    return Picture(
        name="percentiles",
        title="Latency percentiles",
        caption="Exact nearest-rank percentiles with 95 % intervals. TTFT and E2E count from the "
        "planned send time (in a closed loop from the send time), and each failure as infinite "
        "(∞); TPOT is of successes. A bar that ends in an arrow has no bound on that side: the "
        "sample is too small for one, or failures reach it. A percentile that the sample cannot "
        "support is left out.",
        alt="Percentiles P50 to P99.9 of TTFT, E2E and TPOT per stage and variant; the numbers "
        "are in the table of latencies.",
        figure=figure,
    )


def _draw_panel(axes: Any, group: StageRows, variants: Sequence[str], metric: str) -> None:
    shown = [q for row in group.rows for q in _quantiles(row, metric)]
    ps = sorted({q.p for q in shown if q.value is not None})
    ends = [end for q in shown for end in (q.value, q.low, q.high) if _is_finite(end)]
    lines = []
    for row in group.rows:
        i = variants.index(row.variant)
        dodge = (i - (len(variants) - 1) / 2) * min(DODGE, 0.7 / len(variants))
        points = [(ps.index(q.p) + dodge, q) for q in _quantiles(row, metric) if q.p in ps]
        points = [(x, q) for x, q in points if q.value is not None]
        _draw_line(axes, points, i)
        lines.append((points, i))
    axes.set_xticks(range(len(ps)), [percentile_name(p) for p in ps])
    axes.set_xlim(-0.6, max(1, len(ps)) - 0.4)
    axes.grid(visible=False, axis="x")
    if is_wide(ends):
        log_axis(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    if any(not _is_finite(q.high) for q in shown if q.value is not None):
        _leave_room(axes)
    for points, i in lines:
        _draw_intervals(axes, points, i)


def _leave_room(axes: Any) -> None:
    """Above the highest value, for the marks of infinite ones."""
    low, high = axes.get_ylim()
    is_log = axes.get_yscale() == "log"
    axes.set_ylim(top=high * (high / low) ** 0.2 if is_log else high + 0.2 * (high - low))


def _draw_line(axes: Any, points: Sequence[tuple[float, Quantile]], i: int) -> None:
    known = [(x, q.value) for x, q in points if _is_finite(q.value)]
    axes.plot([x for x, _ in known], [y for _, y in known], color=colour_of(i), alpha=0.45)
    axes.plot(
        [x for x, _ in known], [y for _, y in known], color=colour_of(i), marker=marker_of(i),
        markersize=4.5, linestyle="",
    )  # fmt: skip
    # the ends decide how far the axis reaches, so they go on it before the intervals do
    for x, q in points:
        ends = [end for end in (q.low, q.high) if _is_finite(end)]
        axes.plot([x] * len(ends), ends, linestyle="")


def _draw_intervals(axes: Any, points: Sequence[tuple[float, Quantile]], i: int) -> None:
    """Bars; to the edge of the panel, with an arrow, on a side that has no bound."""
    bottom, top = axes.get_ylim()
    look = {"color": colour_of(i), "ha": "center", "transform": axes.get_xaxis_transform()}
    for x, q in points:
        low = bottom if q.low is None else q.low
        high = top if q.high is None else min(q.high, top)
        if low < high:  # else failures reach the lower bound too
            axes.plot([x, x], [low, high], color=colour_of(i), linewidth=3.5, alpha=0.35)
        if q.low is None:
            axes.text(x, 0, "↓", va="bottom", **look)
        if not _is_finite(q.high):
            axes.text(x, 1, "↑", va="top", **look)
        if q.value is not None and math.isinf(q.value):
            box = {"facecolor": "none", "edgecolor": BAD, "boxstyle": "round,pad=0.08"}
            axes.text(
                x,
                0.9,
                "∞",
                va="top",
                fontsize=13,
                weight="bold",
                bbox=box | {"linewidth": 0.7},
                **look,
            )


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _quantiles(row: VariantSummary, metric: str) -> tuple[Quantile, ...]:
    latency = row.latencies[metric]
    return latency.with_failures or latency.quantiles
