"""What the load process says of itself while it runs: one JSON line each, on its stdout."""

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the run is now."""

    t_ns: int
    """From the start of the run."""
    phase: str
    """`waiting for workers`, `preparing`, `running`, `stopping`."""
    n_workers: int = 1
    cells_done: int = 0
    n_cells: int | None = None
    """None in a search, which decides as it goes."""
    stage: str = ""
    block: int = 0
    variant: str = ""
    rate_per_s: float | None = None
    concurrency: int | None = None
    cell_over: int = 0
    """Requests of this cell that are over."""
    cell_planned: int = 0
    """Requests of this cell; 0 in a closed loop."""
    over: int = 0
    """Requests of all cells that are over."""
    failed: int = 0
    in_flight: int = 0
    ttft_ms: tuple[float, float] | None = None
    """P50 and P95 of the TTFT_user of the last requests that succeeded (at most 200)."""
