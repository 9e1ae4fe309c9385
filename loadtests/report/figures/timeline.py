"""The run from its start to its end: which cell ran when, what its requests felt, what failed."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from loadtests.records.record import CellPlan, CellRun
from loadtests.report.figures.style import (
    BAD,
    GRID,
    MUTED,
    RASTERISE_FROM,
    Picture,
    add_legend,
    colour_of,
    log_axis,
    new_figure,
)
from loadtests.report.result import CampaignResult
from loadtests.report.samples import Samples
from loadtests.report.stages import variants_of
from serve_app.domain.units import NS_PER_S


def draw_timeline(
    result: CampaignResult, samples: Samples, cells: Sequence[CellPlan], runs: Sequence[CellRun]
) -> Picture | None:
    """TTFT of every request over time, the failures, and the cells as bands by variant."""
    if not cells:
        return None
    variants = variants_of(result)
    figure = new_figure(4.6)
    upper, failures, bands = figure.subplots(3, 1, sharex=True, height_ratios=(5, 1.1, 1.2))
    points = samples.timeline()
    for i, variant in enumerate(variants):
        mine = [(t, y) for t, y, name in points if name == variant]
        upper.scatter(
            [t for t, _ in mine],
            [y for _, y in mine],
            s=5,
            color=colour_of(i),
            alpha=0.55,
            linewidths=0,
            rasterized=len(points) > RASTERISE_FROM,
        )
    upper.margins(x=0.005)
    upper.set_title("TTFT of each request, ms")
    if points:
        log_axis(upper.yaxis)
    failed = samples.failures_per_s()
    if failed:
        failures.bar(list(failed), list(failed.values()), width=1.0, color=BAD, align="edge")
    else:
        failures.set_yticks([0])
    failures.set_title("failures per second" if failed else "failures per second: none")
    failures.set_ylim(bottom=0)
    failures.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    _draw_bands(bands, cells, runs, variants)
    bands.set_xlabel("seconds from the start of the run")
    add_legend(figure, variants, linestyle="", markersize=5)
    return Picture(
        name="timeline",
        title="Requests over time",
        caption="Warm-up and cool-down included. Bands: the cells by variant, with the stages "
        "below them. A drift or a stripe that crosses variants is the machine's, not a variant's.",
        alt="TTFT of each request over the run, failures per second, and the order of the cells.",
        figure=figure,
    )


def _draw_bands(
    axes: Any, cells: Sequence[CellPlan], runs: Sequence[CellRun], variants: Sequence[str]
) -> None:
    ended: dict[int, int] = {}
    for run in runs:
        ended[run.cell] = max(ended.get(run.cell, 0), run.t_end_ns)
    stages = list(dict.fromkeys(cell.stage for cell in cells))
    start_of: list[tuple[float, str]] = []
    end_s = 0.0
    for cell in cells:
        start_s = cell.start_ns / NS_PER_S
        end_s = start_s + ended.get(cell.index, cell.end_ns) / NS_PER_S
        span = [(start_s, end_s - start_s)]
        axes.broken_barh(span, (1, 1), color=colour_of(variants.index(cell.variant)), linewidth=0)
        shade = MUTED if stages.index(cell.stage) % 2 else GRID
        axes.broken_barh(span, (0.35, 0.5), color=shade, linewidth=0)
        if not start_of or start_of[-1][1] != cell.stage:
            start_of.append((start_s, cell.stage))
    _label(axes, start_of, end_s)
    axes.set_ylim(-0.9, 2.05)
    axes.margins(x=0.005)
    axes.set_yticks([1.5, 0.6], ["variant", "stage"])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _label(axes: Any, start_of: Sequence[tuple[float, str]], end_s: float) -> None:
    """Names of the stages where there is room for them."""
    last_end = -1.0
    for start_s, name in start_of:
        width_s = 0.0085 * end_s * len(name)
        if start_s >= last_end:
            axes.text(start_s, -0.75, name, fontsize=7.5, color=MUTED)
            last_end = start_s + width_s
