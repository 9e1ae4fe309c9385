"""Each variant's ratio to the baseline, with its interval."""

from collections.abc import Sequence
from typing import Any

from loadtests.analyse.nouns import SHARES, Change, Comparison
from loadtests.report.figures.style import (
    GRID,
    MUTED,
    Picture,
    add_legend,
    colour_of,
    marker_of,
    new_figure,
)
from loadtests.report.findings import decisive
from loadtests.report.result import CampaignResult
from loadtests.report.rows import metric_name, short_ratio
from loadtests.report.stages import variants_of

MAX_RATIO = 8.0
"""Ratios beyond it, and below its inverse, end at the panel's edge."""


def draw_comparison(result: CampaignResult) -> Picture | None:
    """One panel per stage; decided differences are filled, the others hollow."""
    stages = list(dict.fromkeys(each.stage for each in result.comparisons))
    ratios = [each for each in result.comparisons if each.metric not in SHARES]
    shown = {s: decisive(e for e in ratios if e.stage == s) for s in stages}
    shown = {stage: found for stage, found in shown.items() if found}
    if not shown:
        return None
    baseline = result.comparisons[0].baseline
    n_lines = max(len(found) for found in shown.values())
    figure = new_figure(1.3 + 0.2 * n_lines)
    panels = figure.subplots(1, len(shown), squeeze=False, sharex=True)[0]
    variants = variants_of(result)
    for axes, (stage, found) in zip(panels, shown.items(), strict=True):
        axes.set_title(stage)
        axes.set_xscale("log")
        same = result.campaign.same_within
        axes.axvspan(1 / (1 + same), 1 + same, color=GRID, alpha=0.7, linewidth=0)
        axes.axvline(1, color=MUTED, linewidth=1)
        _draw_stage(axes, found, variants)
        axes.set_xlabel(f"ratio to {baseline}")
    _ticks(panels[0], [e for found in shown.values() for e in found])
    add_legend(figure, variants, without=baseline, linestyle="")
    return Picture(
        name="comparison",
        title=f"Against {baseline}",
        caption="Ratio to the baseline over paired blocks with 95 % interval; the band counts as "
        "no difference. Filled: better or worse; hollow: same or inconclusive. For latencies, "
        "left of 1 is better. ∞: failures reach the percentile.",
        alt="Ratios of each variant's metrics to the baseline with intervals; the numbers are in "
        "the table of comparisons.",
        figure=figure,
    )


def _draw_stage(axes: Any, found: Sequence[Comparison], variants: Sequence[str]) -> None:
    names = list(dict.fromkeys(metric_name(each) for each in found))
    n = len(dict.fromkeys(each.variant for each in found)) + 1
    ticks = []
    for k, name in enumerate(names):
        mine = [each for each in found if metric_name(each) == name]
        for j, each in enumerate(mine):
            y = k * n + j
            i = variants.index(each.variant)
            if short_ratio(each) == "∞":
                place = axes.get_yaxis_transform()
                axes.text(1, y, "∞ ▸", color=colour_of(i), ha="right", va="center", transform=place)
            if each.ratio is None or each.ratio <= 0:
                continue
            if each.low and each.high:
                ends = [max(1 / MAX_RATIO, each.low), min(MAX_RATIO, each.high)]
                axes.plot(ends, [y, y], color=colour_of(i), linewidth=3, alpha=0.4)
            is_decided = each.change in (Change.BETTER, Change.WORSE)
            axes.plot(
                [min(MAX_RATIO, max(1 / MAX_RATIO, each.ratio))], [y], color=colour_of(i),
                marker=marker_of(i), markersize=5.5, linestyle="",
                markerfacecolor=colour_of(i) if is_decided else "none",
            )  # fmt: skip
        ticks.append(k * n + (len(mine) - 1) / 2)
    axes.set_yticks(ticks, names)
    axes.set_ylim(n * len(names) - 1.2, -0.8)
    axes.grid(visible=False, axis="y")


def _ticks(axes: Any, shown: Sequence[Comparison]) -> None:
    """Round ratios around 1 that the shared axis spans."""
    known = [end for e in shown for end in (e.ratio, e.low, e.high) if end]
    widest = min(MAX_RATIO, max([1.2, *(max(v, 1 / v) for v in known)]) * 1.05)
    steps = [v for v in (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0) if v <= widest]
    if len(steps) > 3:
        steps = steps[-1:1:-2] or steps
    ticks = [*(1 / v for v in steps), 1.0, *steps]
    axes.set_xlim(1 / widest, widest)
    axes.set_xticks(ticks, [f"{v:.2f}".rstrip("0").rstrip(".") for v in ticks])
    axes.set_xticks([], minor=True)
