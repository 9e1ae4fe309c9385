"""Pictures of a result: percentiles with their intervals, and latency against load."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loadtests.campaign import Campaign
from loadtests.analyse.stats import Quantile
from loadtests.analyse.summary import VariantSummary

# Okabe-Ito: told apart by people with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PERCENTILE_MARKS = ((0.50, "o"), (0.95, "s"), (0.99, "D"))
PANELS = (("ttft_user_ms", "TTFT"), ("e2e_user_ms", "E2E"), ("tpot_ms", "TPOT"))
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "figure.dpi": 150,
}


def plot_result(
    campaign: Campaign, summaries: Sequence[VariantSummary], folder: Path
) -> tuple[Path, ...]:
    """Draw `latency.png`, and `load.png` if there are two or more stages. Returns the files."""
    if not summaries:
        return ()
    with mpl.rc_context(STYLE):
        pictures = [_plot_latency(campaign, summaries, folder / "latency.png")]
        if len({each.stage for each in summaries}) > 1:
            pictures.append(_plot_load(campaign, summaries, folder / "load.png"))
    return tuple(pictures)


def _plot_latency(campaign: Campaign, summaries: Sequence[VariantSummary], path: Path) -> Path:
    """One row per stage, one panel per metric, one line per variant: P50, P95, P99."""
    stages = [s for s in campaign.stages if any(each.stage == s.name for each in summaries)]
    variants = list(dict.fromkeys(each.variant for each in summaries))
    height = 1.3 + len(stages) * (0.9 + 0.42 * len(variants))
    figure = Figure(figsize=(11, height), layout="constrained")
    grid = figure.subplots(len(stages), len(PANELS), squeeze=False, sharex="col")
    for axes_row, stage in zip(grid, stages, strict=True):
        for axes, (metric, title) in zip(axes_row, PANELS, strict=True):
            rows = [each for each in summaries if each.stage == stage.name]
            _draw_panel(axes, rows, variants, metric)
            axes.set_title(f"{title}, {stage.name} ({stage.rate_per_s:g}/s)", loc="left")
            if axes is not axes_row[0]:
                axes.set_yticklabels([])
    for axes, (metric, _) in zip(grid[-1], PANELS, strict=True):
        axes.set_xlim(0, 1.06 * _largest(summaries, metric))
        axes.set_xlabel("ms")
    handles = [
        Line2D([], [], color="#444444", marker=mark, linestyle="", label=f"P{p * 100:g}")
        for p, mark in PERCENTILE_MARKS
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"{campaign.target.model}: latency of successful requests, 95 % intervals",
        x=0.01,
        ha="left",
    )
    figure.savefig(path)
    return path


def _draw_panel(
    axes: Any, rows: Sequence[VariantSummary], variants: Sequence[str], metric: str
) -> None:
    for y, variant in enumerate(variants):
        row = next((each for each in rows if each.variant == variant), None)
        if row is None:
            continue
        colour = COLOURS[y % len(COLOURS)]
        quantiles = [row.latencies[metric].at(p) for p, _ in PERCENTILE_MARKS]
        known = [q.value for q in quantiles if q.value is not None]
        if not known:
            axes.text(
                0.02,
                y,
                "no sample",
                color=colour,
                va="center",
                transform=axes.get_yaxis_transform(),
            )
        else:
            axes.plot([known[0], known[-1]], [y, y], color=colour, alpha=0.35, linewidth=1)
        for q, (_, mark) in zip(quantiles, PERCENTILE_MARKS, strict=True):
            _draw_quantile(axes, q, y, mark, colour)
    axes.set_yticks(range(len(variants)), variants)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _largest(summaries: Sequence[VariantSummary], metric: str) -> float:
    """The largest value or bound that a panel of `metric` shows; 1 if it shows none."""
    shown = [row.latencies[metric].at(p) for row in summaries for p, _ in PERCENTILE_MARKS]
    ends = [end for q in shown for end in (q.value, q.high) if end is not None]
    return max(ends, default=1.0)


def _draw_quantile(axes: Any, q: Quantile, y: float, mark: str, colour: str) -> None:
    if q.value is None:
        return
    low = q.value if q.low is None else q.low
    high = q.value if q.high is None else q.high
    axes.plot([low, high], [y, y], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
    axes.plot([q.value], [y], color=colour, marker=mark, markersize=6, linestyle="")


def _plot_load(campaign: Campaign, summaries: Sequence[VariantSummary], path: Path) -> Path:
    """Failure-aware P95 TTFT and E2E, and output tokens per second, against the offered rate."""
    rates = {stage.name: stage.rate_per_s for stage in campaign.stages}
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes_row = figure.subplots(1, 3)
    for i, variant in enumerate(dict.fromkeys(each.variant for each in summaries)):
        rows = [each for each in summaries if each.variant == variant]
        rows.sort(key=lambda each: rates[each.stage])
        x = [rates[each.stage] for each in rows]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "label": variant}
        axes_row[0].plot(x, [_p95(each, "ttft_user_ms") for each in rows], **style)
        axes_row[1].plot(x, [_p95(each, "e2e_user_ms") for each in rows], **style)
        axes_row[2].plot(x, [each.output_tokens_per_s for each in rows], **style)
    titles = ("TTFT P95, ms", "E2E P95, ms", "output tokens/s")
    for axes, title in zip(axes_row, titles, strict=True):
        axes.set_title(title, loc="left")
        axes.set_xlabel("offered requests/s")
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax if math.isfinite(axes.dataLim.ymax) else 1)
        axes.set_xlim(left=0)
    handles, labels = axes_row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"{campaign.target.model}: against load, failures count as infinite", x=0.01, ha="left"
    )
    figure.savefig(path)
    return path


def _p95(row: VariantSummary, metric: str) -> float:
    """Failure-aware P95; NaN, which is not drawn, where there is none or it is infinite."""
    quantiles = row.latencies[metric].with_failures or ()
    value = next((q.value for q in quantiles if q.p == 0.95), None)
    return math.nan if value is None or math.isinf(value) else value
