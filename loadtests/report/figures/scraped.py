"""What the server said of itself while the load ran: KV use, queues, batch sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.records.manifest import MetricSample
from loadtests.records.record import CellPlan
from loadtests.report.figures.style import (
    GRID,
    MUTED,
    Picture,
    add_legend,
    colour_of,
    line_of,
    new_figure,
)
from loadtests.report.result import CampaignResult
from loadtests.report.stages import variants_of
from serve_app.domain.units import NS_PER_S

MAX_PANELS = 8
Line = tuple[Sequence[float], Sequence[float]]


def draw_scraped(
    result: CampaignResult, scraped: Sequence[MetricSample], cells: Sequence[CellPlan]
) -> Picture | None:
    """One panel per series, one line per set of labels, in the colour of the variant it names."""
    names = sorted({each.name for each in scraped})
    if not names:
        return None
    shown = names[:MAX_PANELS]
    variants = variants_of(result)
    figure = new_figure(0.8 + 1.25 * len(shown))
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axes, name in zip(panels, shown, strict=True):
        for labels, line in _lines(each for each in scraped if each.name == name).items():
            variant = _variant_of(dict(labels), variants)
            i = variants.index(variant) if variant else None
            look = (
                {"color": MUTED} if i is None else {"color": colour_of(i), "linestyle": line_of(i)}
            )
            axes.plot(*line, **look, linewidth=1.1, drawstyle="steps-post", alpha=0.85)
        _shade(axes, cells)
        axes.set_title(name)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.005)
    panels[-1].set_xlabel("seconds from the start of the run")
    add_legend(figure, variants, has_lines=True)
    left_out = f" {len(names) - len(shown)} more are in samples.jsonl." if names != shown else ""
    return Picture(
        name="scraped",
        title="The server's own metrics",
        caption="As scraped while the load ran, in the colour of the variant that the labels "
        f"name, or grey if they name none. Shaded: every other cell.{left_out}",
        alt=f"Time series of {', '.join(shown)}.",
        figure=figure,
    )


def _lines(samples: Any) -> Mapping[tuple[tuple[str, str], ...], Line]:
    lines: dict[tuple[tuple[str, str], ...], tuple[list[float], list[float]]] = {}
    for each in samples:
        times, values = lines.setdefault(tuple(sorted(each.labels.items())), ([], []))
        times.append(each.t_ns / NS_PER_S)
        values.append(each.value)
    return lines


def _variant_of(labels: Mapping[str, str], variants: Sequence[str]) -> str | None:
    """The variant that a label names whole, as `m@awq` or `m--awq`; the longest such name."""
    found = [
        name
        for name in variants
        for text in labels.values()
        if text == name or text.endswith((f"@{name}", f"-{name}", f":{name}", f"/{name}"))
    ]
    return max(found, key=len, default=None)


def _shade(axes: Any, cells: Sequence[CellPlan]) -> None:
    for cell in cells[1::2]:
        start = cell.start_ns / NS_PER_S
        axes.axvspan(start, start + cell.end_ns / NS_PER_S, color=GRID, alpha=0.35, linewidth=0)
