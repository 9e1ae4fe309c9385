"""What our pages are made of: the head that lets nothing in, sections, figures, tables."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from loadtests.report.figures.style import Picture, to_svg
from loadtests.report.html import Html, join, tag
from loadtests.report.page_style import CSS, SCRIPT
from loadtests.report.tables import Cell, Table

LONG_CELL = 28
"""Characters from which a cell's text wraps."""


def head(title: str) -> Html:
    """Nothing may be loaded, and no script but ours may run, whatever a name contains."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(CSS)),
    )


def section(name: str, title: str, content: Sequence[Html]) -> tuple[str, str, Html | None]:
    """A section of the page; None where there is nothing to show."""
    if not content:
        return name, title, None
    return name, title, tag("section", tag("h2", title), *content, id=name)


def definitions(entries: Mapping[str, str]) -> Html:
    """Names with what they mean."""
    pairs = ((tag("dt", name), tag("dd", text)) for name, text in entries.items())
    return tag("dl", *(part for pair in pairs for part in pair))


def figure_html(picture: Picture) -> Html:
    """The figure as inline SVG with its title and caption. To be called within `style()`."""
    svg = re.sub(r"<svg ", '<svg role="img" ', to_svg(picture.figure), count=1)
    # the label is escaped by `tag`; the drawing's own text by matplotlib
    label = tag("svg", aria_label=picture.alt)[len("<svg ") : -len("></svg>")]
    svg = svg.replace("<svg ", f"<svg {label} ", 1)
    return tag(
        "figure",
        tag("h3", picture.title),
        tag(
            "div", Html(svg), class_="scroll", tabindex="0", role="group", aria_label=picture.title
        ),
        tag("figcaption", picture.caption),
        id=f"figure-{picture.name}",
    )


def table_html(table: Table, footnote: str = "") -> Html:
    """A table whose columns sort when their heading is pressed; it scrolls where it is wide."""
    kinds = [_kind(table, i) for i in range(len(table.header))]
    head = [
        tag("th", tag("button", text, type="button"), scope="col", class_=kind)
        for text, kind in zip(table.header, kinds, strict=True)
    ]
    body = [tag("tr", *_row(row, kinds)) for row in table.rows]
    inner = tag(
        "table", tag("caption", table.caption), tag("thead", tag("tr", *head)), tag("tbody", *body)
    )
    caption = table.caption
    shown = tag("div", inner, class_="scroll", tabindex="0", role="group", aria_label=caption)
    return join([shown, tag("p", footnote, class_="muted footnote") if footnote else ""])


def _kind(table: Table, i: int) -> str | None:
    """How a column is set: names and running text to the left, numbers to the right."""
    if i < table.n_names:
        return "name"
    is_text = any(len(row[i].text) > LONG_CELL for row in table.rows)
    return "long" if is_text else None


def _row(row: Sequence[Cell], kinds: Sequence[str | None]) -> Iterable[Html]:
    for cell, kind in zip(row, kinds, strict=True):
        if kind == "name":
            yield tag("th", cell.text, scope="row", class_=kind)
        else:
            classes = " ".join(part for part in (cell.tone, kind) if part)
            yield tag("td", cell.text, class_=classes or None, title=cell.title)
