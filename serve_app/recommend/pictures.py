"""The figures of a recommendation. The only module of this package that draws."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from loadtests.report.figures.style import (
    GRID,
    INK,
    MUTED,
    Picture,
    add_legend,
    colour_of,
    is_wide,
    lay_out,
    log_axis,
    marker_of,
    new_figure,
)
from serve_app.advise.candidates import Status
from serve_app.advise.contrasts import Interval
from serve_app.advise.evidence import Evidence, Level, VariantEvidence
from serve_app.domain.units import GIB, MIB
from serve_app.recommend.report import Report

_LARGEST = 260.0
"""Points², the marker of the variant that takes the most memory; the others' areas follow."""
_SMALLEST_SHARE = 0.06
_PANELS_PER_ROW = 3
_UNKNOWN_SIZE = 90.0


def draw_pictures(report: Report) -> tuple[Picture, ...]:
    """The figures for which there is evidence. To be called within `style()`."""
    drawn = (draw_front(report), draw_bars(report))
    pictures = tuple(each for each in drawn if each is not None)
    for each in pictures:
        lay_out(each.figure)
    return pictures


def draw_front(report: Report) -> Picture | None:
    """One panel per load level: latency to the right, quality upwards, area by memory."""
    evidence = report.evidence
    levels = [level for level in evidence.levels if _points(evidence, level)]
    if not levels:
        return None
    n_rows = math.ceil(len(levels) / _PANELS_PER_ROW)
    n_columns = min(len(levels), _PANELS_PER_ROW)
    figure = new_figure(0.9 + 2.9 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    panels = list(grid.flat)
    fronts = {each.levels: each.variants for each in report.recommendation.front_by_level}
    floor = _floor(report, levels)
    for axes, level in zip(panels, levels, strict=False):
        _draw_level(axes, evidence, level, fronts.get((level.name,), ()), floor)
    for axes in panels[len(levels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("quality: right answers, %")
    add_legend(figure, evidence.names, linestyle="", markersize=6)
    return Picture(
        name="front",
        title="Quality against latency at each load level",
        caption=f"Up and to the left is better. {evidence.metric} and the share of right answers "
        "with 95 % intervals; the larger the marker, the more memory a replica takes (area). "
        "Filled: on the Pareto front of quality, latency, memory and cost; hollow: another variant "
        "is decidedly no worse anywhere and better somewhere, or it may not be chosen.",
        alt="Scatter of each variant's latency and quality, one panel per load level; the numbers "
        "are in the table of variants.",
        figure=figure,
    )


def _points(evidence: Evidence, level: Level) -> list[tuple[int, Interval, Interval]]:
    """Variants with both numbers: their place in the order, latency, quality in percent."""
    found = []
    for i, variant in enumerate(evidence.variants):
        at, quality = variant.at.get(level.name), variant.quality
        if at is None or at.latency_ms is None or not math.isfinite(at.latency_ms.value):
            continue
        if quality is not None and quality.score is not None:
            found.append((i, at.latency_ms, _scaled(quality.score, 100)))
    return found


def _floor(report: Report, levels: Sequence[Level]) -> float:
    """The quality below which a variant is only named at the edge: one that is out by far would
    press the others into one line.
    """
    standings = report.recommendation.overall.standings
    out = {each.name for each in standings if each.status is Status.OUT}
    evidence = report.evidence
    points = [point for level in levels for point in _points(evidence, level)]
    kept = [q for i, _, q in points if evidence.names[i] not in out] or [q for _, _, q in points]
    ends = [end for quality in kept for end in _ends(quality)]
    return min(ends) - max(max(ends) - min(ends), 0.5)


def _draw_level(
    axes: Any, evidence: Evidence, level: Level, on_front: Sequence[str], floor: float
) -> None:
    points = _points(evidence, level)
    axes.set_title(f"{level.name} ({level.load})")
    axes.set_xlabel(f"{evidence.metric}, ms")
    shown = [point for point in points if point[2].value >= floor]
    # the largest first, so that no marker hides a smaller one
    for i, latency, quality in sorted(shown, key=lambda p: -_area(evidence, p[0])):
        colour, name = colour_of(i), evidence.names[i]
        for x, y in (
            (_ends(latency), [quality.value] * 2),
            ([latency.value] * 2, _ends(quality)),
        ):
            axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.55, zorder=2)
        axes.scatter(
            [latency.value], [quality.value], s=_area(evidence, i), marker=marker_of(i),
            edgecolors=colour, linewidths=1.4, zorder=3, alpha=0.85,
            facecolors=colour if name in on_front else "white",
        )  # fmt: skip
    for i, latency, quality in points:
        if quality.value < floor:
            axes.annotate(
                f"↓ {evidence.names[i]} {quality.value:.1f} %", (latency.value, 0.02),
                xycoords=axes.get_xaxis_transform(), color=colour_of(i), ha="center", va="bottom",
                fontsize=8,
            )  # fmt: skip
            axes.plot([latency.value], [floor], alpha=0)  # it counts for the axis' range
    if is_wide([latency.value for _, latency, _ in points]):
        log_axis(axes.xaxis)
    axes.margins(x=0.18, y=0.22)
    _step_through(axes, [p for p in points if evidence.names[p[0]] in on_front])


def _step_through(axes: Any, points: Sequence[tuple[int, Interval, Interval]]) -> None:
    """The front as a staircase in these two of its axes: nothing measured lies above and left.

    A member of the front that only memory or cost keeps there stays below it.
    """
    corners: list[tuple[float, float]] = []
    for _, latency, quality in sorted(points, key=lambda p: (p[1].value, -p[2].value)):
        if not corners or quality.value > corners[-1][1]:
            corners.append((latency.value, quality.value))
    if len(corners) > 1:
        x, y = zip(*corners, strict=True)
        axes.step(x, y, where="post", color=MUTED, linewidth=1.0, linestyle="--", zorder=1)


def _area(evidence: Evidence, i: int) -> float:
    memory = evidence.variants[i].memory
    known = [v.memory.compared_bytes for v in evidence.variants if v.memory is not None]
    if memory is None:
        return _UNKNOWN_SIZE
    return _LARGEST * max(_SMALLEST_SHARE, memory.compared_bytes / max(known))


def draw_bars(report: Report) -> Picture | None:
    """Memory, tokens per second, cost and loss of quality as bars with intervals."""
    evidence = report.evidence
    every = {title: [of(each) for each in evidence.variants] for title, of in _BARS.items()}
    every = {_memory_title(evidence): _memory_values(evidence), **every}
    panels = [(title, values) for title, values in every.items() if any(values)]
    if not panels:
        return None
    figure = new_figure(0.75 + 0.27 * len(evidence.names))
    drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, values) in zip(drawn, panels, strict=True):
        _draw_panel(axes, title, values)
    drawn[0].set_yticks(range(len(evidence.names)), _marked(report))
    drawn[0].invert_yaxis()
    return Picture(
        name="bars",
        title="What each variant takes, gives and costs",
        caption="95 % intervals; an arrow is an end that the evidence does not have, as of a "
        "capacity that no rate exceeded. ▶ is the recommended variant. A variant without a bar was "
        "not measured in that.",
        alt="Bars of memory, throughput, cost and loss of quality of each variant; the numbers are "
        "in the table of variants.",
        figure=figure,
    )


def _marked(report: Report) -> list[str]:
    chosen = report.recommendation.chosen
    return [f"▶ {name}" if name == chosen else name for name in report.evidence.names]


def _draw_panel(axes: Any, title: str, values: Sequence[Interval | None]) -> None:
    axes.set_title(title, fontsize=8.5)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    known = [end for v in values if v is not None for end in (v.value, v.low, v.high) if end]
    widest = max((abs(end) for end in known), default=1.0)
    for i, value in enumerate(values):
        if value is None:
            axes.text(0, i, " not known", va="center", color=MUTED, fontsize=7.5)
            continue
        axes.barh(i, value.value, height=0.62, color=colour_of(i), alpha=0.75, zorder=2)
        if value.low is not None or value.high is not None:
            low, high = value.low, value.high
            left = value.value if low is None else low
            right = value.value + 0.06 * widest if high is None else high
            axes.plot([left, right], [i, i], color=INK, linewidth=1.3, zorder=3)
            if high is None:
                axes.plot([right], [i], color=INK, marker=">", markersize=4, zorder=3)
            if low is None:
                axes.plot([left], [i], color=INK, marker="<", markersize=4, zorder=3)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_facecolor("none")
    axes.spines["left"].set_color(GRID)
    axes.locator_params(axis="x", nbins=4)


def _memory_unit(evidence: Evidence) -> tuple[str, int]:
    known = [v.memory.compared_bytes for v in evidence.variants if v.memory is not None]
    return ("GiB", GIB) if max(known, default=0) >= GIB else ("MiB", MIB)


def _memory_title(evidence: Evidence) -> str:
    """Where nothing is planned, only the weights are known."""
    planned = any(v.memory and v.memory.need_bytes is not None for v in evidence.variants)
    return f"{'a replica takes' if planned else 'weights'}, {_memory_unit(evidence)[0]}"


def _memory_values(evidence: Evidence) -> list[Interval | None]:
    unit = _memory_unit(evidence)[1]
    found = [variant.memory for variant in evidence.variants]
    return [None if each is None else Interval(each.compared_bytes / unit) for each in found]


def _tokens(variant: VariantEvidence) -> Interval | None:
    return None if variant.capacity is None else variant.capacity.output_tokens_per_s


def _loss(variant: VariantEvidence) -> Interval | None:
    quality = variant.quality
    return None if quality is None or quality.loss is None else _scaled(quality.loss, 100)


_BARS: dict[str, Callable[[VariantEvidence], Interval | None]] = {
    "output tokens/s within the SLO": _tokens,
    "USD per million output tokens": lambda variant: variant.cost_usd_per_million,
    "loss of quality, %": _loss,
}


def _scaled(known: Interval, by: float) -> Interval:
    low, high = (None if end is None else end * by for end in (known.low, known.high))
    return Interval(known.value * by, low, high)


def _ends(known: Interval) -> list[float]:
    return [
        known.value if end is None or not math.isfinite(end) else end
        for end in (known.low, known.high)
    ]
