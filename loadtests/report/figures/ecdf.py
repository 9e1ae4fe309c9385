"""The whole distribution: which share of the planned requests was answered within x ms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtests.report.figures.percentiles import PANELS
from loadtests.report.figures.style import (
    Picture,
    add_legend,
    colour_of,
    line_of,
    log_axis,
    new_figure,
)
from loadtests.report.result import CampaignResult
from loadtests.report.samples import Samples
from loadtests.report.stages import stage_rows, variants_of

MAX_POINTS = 300
"""Steps drawn per line; the smallest and the largest sample are always among them."""


def draw_ecdf(result: CampaignResult, samples: Samples) -> Picture | None:
    """One row per stage, one panel per metric."""
    groups = [each for each in stage_rows(result) if not each.is_search]
    if not groups:
        return None
    variants = variants_of(result)
    figure = new_figure(0.6 + 2.0 * len(groups))
    grid = figure.subplots(len(groups), len(PANELS), squeeze=False, sharex="col", sharey=True)
    for axes_row, group in zip(grid, groups, strict=True):
        for axes, (metric, title) in zip(axes_row, PANELS, strict=True):
            for row in group.rows:
                values = samples.latencies(row.stage, row.variant, metric)
                # an undefined TPOT is no failure: its share is of the requests that have one
                n = row.n_planned if row.latencies[metric].with_failures else len(values)
                _draw_line(axes, values, n, variants.index(row.variant))
            axes.set_title(f"{title}, {group.name}")
            axes.set_ylim(0, 1.02)
        axes_row[0].set_ylabel("share of requests")
    for axes in grid[-1]:
        axes.set_xlabel("ms")
        log_axis(axes.xaxis)
    add_legend(figure, variants, has_lines=True)
    return Picture(
        name="ecdf",
        title="Latency distribution",
        caption="Cumulative share of the planned requests; a line that ends below 1 has failures. "
        "Further left is faster.",
        alt="Empirical cumulative distributions of TTFT, E2E and TPOT per stage and variant.",
        figure=figure,
    )


def _draw_line(axes: Any, values: Sequence[float], n: int, i: int) -> None:
    if not values or not n:
        return
    ordered = np.sort(np.asarray(values))
    picked = np.unique(np.linspace(0, len(ordered) - 1, MAX_POINTS).round().astype(int))
    axes.plot(
        ordered[picked],
        (picked + 1) / n,
        drawstyle="steps-post",
        color=colour_of(i),
        linestyle=line_of(i),
    )
