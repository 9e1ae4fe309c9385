"""How numbers are written in sentences and tables; missing is a dash, an open end a `…`."""

import math

from serve_app.advise.contrasts import Contrast, Interval
from serve_app.domain.units import format_bytes

NOTHING = "-"


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:.{digits}f}"


def interval(known: Interval | None, unit: str = "") -> str:
    """`12.1 ms [11.8, 12.6]`; `-` for none."""
    if known is None:
        return NOTHING
    if known.low is None and known.high is None:
        return f"{number(known.value)}{unit}"
    return f"{number(known.value)}{unit} [{_end(known.low)}, {_end(known.high)}]"


def percent(known: Interval | None) -> str:
    """`98.7 % [98.1, 99.2]`."""
    if known is None:
        return NOTHING
    ends = [None if end is None else 100 * end for end in (known.low, known.high)]
    shown = f"{100 * known.value:.2f} %"
    if ends == [None, None]:
        return shown
    return f"{shown} [{', '.join('…' if end is None else f'{end:.2f}' for end in ends)}]"


def size(n_bytes: int | None) -> str:
    """Bytes in binary units."""
    return NOTHING if n_bytes is None else format_bytes(n_bytes)


def ratio(contrast: Contrast | None) -> str:
    """Of a smaller-is-better axis, first to second: `0.62 [0.58, 0.66]`; `-` where unknown."""
    if contrast is None or contrast.gain is None:
        return NOTHING
    value, low, high = (
        None if gain is None else math.exp(-gain)
        for gain in (contrast.gain, contrast.high, contrast.low)
    )
    if low == high == value:
        return number(value)
    return f"{number(value)} [{_end(low)}, {_end(high)}]"


def times(log_ratio: float) -> str:
    """A logarithm as a factor above 1: `1.6`."""
    return number(math.exp(abs(log_ratio)))


def listing(names: list[str] | tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _end(end: float | None) -> str:
    return "…" if end is None else number(end)
