"""Units: basis points for shares, bytes for memory. Names carry them (`_bp`, `_bytes`, `_ms`)."""

BP_TOTAL = 10_000
"""Basis points in a whole: shares are integers that sum to this."""

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def format_bytes(n_bytes: int) -> str:
    """`5773960` -> `'5.5 MiB'`: three significant digits, binary units."""
    if n_bytes < KIB:
        return f"{n_bytes} B"
    value = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1000 or unit == "TiB":
            break
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"
