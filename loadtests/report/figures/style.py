"""What all figures share: colours, sizes, and how a figure becomes a PNG file or inline SVG."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

# Okabe-Ito: told apart by people with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#111111")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
CLASS_COLOURS = ("#b04070", "#ddaa33", "#44aa99", "#8899dd", "#999933", "#aa66bb", "#888888")
"""Of error classes: none is a variant's colour."""
INK, MUTED, GRID, BAD = "#1b1b1f", "#6b6b75", "#dcdce2", "#c02030"
WIDTH_IN = 9.6
RASTERISE_FROM = 2000
"""Points of one scatter from which it is set into the SVG as one picture."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": 72,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "quantile",
    "text.parse_math": False,  # names come from the target: `$` in one is a dollar
}


@dataclass(frozen=True)
class Picture:
    """One figure with the words that go with it."""

    name: str
    """File name without its ending, and the anchor in the page."""
    title: str
    caption: str
    """What to read from it."""
    alt: str
    """What it shows, for those who cannot see it."""
    figure: Figure


def style() -> Any:
    """A context in which figures are made and saved."""
    return mpl.rc_context(STYLE)


def new_figure(height_in: float) -> Figure:
    """A figure of the page's width whose panels make room for their labels."""
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def colour_of(i: int) -> str:
    """The colour of the `i`-th variant."""
    return COLOURS[i % len(COLOURS)]


def marker_of(i: int) -> str:
    """Its marker: with the colour, 49 variants before two look the same."""
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def line_of(i: int) -> str:
    """Its line, where there are no markers."""
    return LINES[i // len(COLOURS) % len(LINES)]


def add_legend(
    figure: Figure,
    variants: Sequence[str],
    *,
    without: str | None = None,
    has_lines: bool = False,
    **line: Any,
) -> None:
    """A legend of the variants under the figure, but for the one that it does not show.

    `has_lines`: variants are told apart by their lines, not by their markers.
    """
    handles = [
        Line2D(
            [],
            [],
            color=colour_of(i),
            label=_legible(name),
            **({"linestyle": line_of(i)} if has_lines else {"marker": marker_of(i)} | line),
        )
        for i, name in enumerate(variants)
        if name != without
    ]
    longest = max(map(len, variants), default=1)
    columns = max(1, min(len(handles), int(110 / (longest + 8))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _legible(name: str) -> str:
    """matplotlib leaves entries that begin with `_` out of legends."""
    return f"\u200b{name}" if name.startswith("_") else name


def log_axis(axis: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5; at more where it spans little."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high > 8 * low > 0 else (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def lay_out(figure: Figure) -> None:
    """Make room for the labels once, and not for each file that the figure is saved to."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def is_wide(values: Iterable[float]) -> bool:
    """Whether positive values span so much that a linear axis hides the small ones."""
    known = [v for v in values if math.isfinite(v) and v > 0]
    return bool(known) and max(known) > 12 * min(known)


def save_png(picture: Picture, folder: Path) -> Path:
    """Write `<name>.png` on white."""
    path = folder / f"{picture.name}.png"
    picture.figure.savefig(path, facecolor="white")
    return path


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element whose colours follow the page's theme."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*(<metadata>.*?</metadata>|<!--.*?-->)", "", text, flags=re.DOTALL)
    text = _without_unused_ids(text)
    # matplotlib names each font's fallbacks; the page's own font is at hand everywhere
    text = re.sub(r"'DejaVu Sans'", "system-ui, 'DejaVu Sans'", text)
    for colour, variable in _VARIABLES.items():
        text = re.sub(rf"(?<=: ){colour}", f"var(--{variable})", text)
    return re.sub(r"\n\s*", "\n", text)


_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BAD: "bad",
    **{colour: f"v{i}" for i, colour in enumerate(COLOURS)},
}


def _without_unused_ids(text: str) -> str:
    """Figures share a page: only ids that something points to stay (they are content hashes)."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text))
    return re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
