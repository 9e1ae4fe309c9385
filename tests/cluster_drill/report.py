"""The table of what was drilled."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

ROWS: list["Row"] = []
"""Of this test run, in the order in which they came."""


@dataclass(frozen=True)
class Row:
    """One thing that was done to a cluster. None: it has none, or nobody counted."""

    drilled: str
    s: float | None = None
    """Until it had come to its end."""
    requests: int | None = None
    failed: int | None = None
    broken: int | None = None
    """Begun, then ended by an error event or cut."""
    retried: int | None = None
    seen: str = ""


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    names = [each.name for each in fields(Row)]
    lines = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        text.rjust(width) if 0 < n < len(cells) - 1 else text.ljust(width)
        for n, (text, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
