"""`outputs.html`: what each variant wrote, beside the others, for people to read."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STYLE = (
    "body{font:14px system-ui,sans-serif;margin:1.5rem}table{border-collapse:collapse;width:100%}"
    "td,th{border:1px solid #ccc;padding:.4rem;text-align:left;vertical-align:top;"
    "white-space:pre-wrap;overflow-wrap:anywhere}th{background:#f3f3f3}"
    "td.differs{background:#fff3d6}td.none{color:#777}"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Shown:
    """One request, its reference, and each pass's output; None where it has none."""

    group: str
    request: str
    reference: str
    outputs: Mapping[str, str | None]


def page(title: str, body: Sequence[str]) -> str:
    """A page that loads nothing and runs nothing. `body` is markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def render_side_by_side(model: str, names: Sequence[str], shown: Sequence[Shown]) -> str:
    """All texts are escaped; an output that differs from the first's is marked."""
    head = "".join(
        f"<th>{html.escape(name)}</th>" for name in ("set", "request", "reference", *names)
    )
    rows = []
    for each in shown:
        first = each.outputs.get(names[0])
        cells = [
            f"<td>{html.escape(text)}</td>" for text in (each.group, each.request, each.reference)
        ]
        cells += [_cell(each.outputs.get(name), first) for name in names]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = (
        "<p>Generated texts, and those task items that a variant gets right and the baseline "
        "wrong, or the other way. Marked: differs from the baseline.</p>"
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return page(f"Outputs side by side: {model}", [note, table])


def _cell(text: str | None, first: str | None) -> str:
    if text is None:
        return '<td class="none">no answer</td>'
    kind = "" if text == first else ' class="differs"'
    return f"<td{kind}>{html.escape(text)}</td>"
