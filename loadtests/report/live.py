"""A run while it runs: where it is, how it goes, and when it will be over."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtests.records.progress import Progress
from loadtests.report.rows import number

LINE_EVERY_S = 5.0
"""Between two lines where there is no terminal to draw in."""
REFRESH_PER_S = 4
NS_PER_S = 1_000_000_000


class LiveView:
    """Shows `Progress`: drawn in place on a terminal, a line every few seconds elsewhere.

    A context manager: the terminal is restored however the run ends. No error in drawing may
    end a run, so text from outside is never markup.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._eta = Eta()
        self._live: Live | None = None
        self._last_line: tuple[float, str] | None = None

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=REFRESH_PER_S, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, progress: Progress) -> None:
        """Show where the run is now."""
        self._eta.observe(progress)
        left_s = self._eta.left_s(progress)
        if self._live is not None:
            self._live.update(drawn(progress, left_s))
            return
        now = self._clock()
        due = self._last_line is None or now - self._last_line[0] >= LINE_EVERY_S
        if due or (self._last_line is not None and self._last_line[1] != progress.phase):
            self._last_line = (now, progress.phase)
            text = line_of(progress, left_s)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Eta:
    """Time left, from the time that the cells so far took."""

    def __init__(self) -> None:
        self._first_ns: int | None = None

    def observe(self, progress: Progress) -> None:
        """Remember when the first cell began: preparing takes no cell's time."""
        if self._first_ns is None and progress.phase == "running":
            self._first_ns = progress.t_ns

    def left_s(self, progress: Progress) -> float | None:
        """Seconds that the cells left will take; None before the first is done, or in a search."""
        if self._first_ns is None or not progress.n_cells or not progress.cells_done:
            return None
        per_cell_s = (progress.t_ns - self._first_ns) / NS_PER_S / done_cells(progress)
        return max(0.0, (progress.n_cells - done_cells(progress)) * per_cell_s)


def done_cells(progress: Progress) -> float:
    """Cells that are done, with the part of the present one whose requests are over."""
    part = progress.cell_over / progress.cell_planned if progress.cell_planned else 0.0
    whole = progress.cells_done + min(1.0, part)
    return whole if progress.n_cells is None else min(float(progress.n_cells), whole)


def line_of(progress: Progress, left_s: float | None) -> str:
    """All that is known in one line."""
    cells = f"cell {progress.cells_done}" + (f"/{progress.n_cells}" if progress.n_cells else "")
    parts = [duration(progress.t_ns / NS_PER_S), progress.phase, cells]
    if progress.stage:
        parts.append(where(progress))
    parts.append(f"{progress.over} over, {progress.failed} failed, {progress.in_flight} in flight")
    parts.append(f"TTFT {ttft(progress)}")
    if left_s is not None:
        parts.append(f"{duration(left_s)} left")
    return "  ".join(parts)


def drawn(progress: Progress, left_s: float | None) -> RenderableType:
    """A bar over the whole run, and a few lines of figures."""
    total = progress.n_cells
    bar = ProgressBar(
        total=total or 1, completed=done_cells(progress) if total else 0, pulse=total is None
    )
    cells = f"{progress.cells_done}" + (f" of {total}" if total else "") + " cells"
    left = "" if left_s is None else f", about {duration(left_s)} left"
    head = Text(f"{progress.phase}: {cells}, {duration(progress.t_ns / NS_PER_S)}{left}")
    figures = Table.grid(padding=(0, 3))
    workers = f"{progress.n_workers} load processes" if progress.n_workers > 1 else ""
    planned = f" of {progress.cell_planned}" if progress.cell_planned else ""
    failed = Text(f"{progress.failed} failed", style="red" if progress.failed else "dim")
    figures.add_row(Text(where(progress)), Text(workers))
    figures.add_row(
        Text(f"{progress.cell_over}{planned} in this cell, {progress.over} in all"), failed
    )
    figures.add_row(Text(f"TTFT {ttft(progress)}"), Text(f"{progress.in_flight} in flight"))
    lines = Table.grid(expand=True)
    for line in (head, bar, figures):
        lines.add_row(line)
    return lines


def where(progress: Progress) -> str:
    """`heavy, block 2, awq, 8/s`."""
    if not progress.stage:
        return ""
    if progress.concurrency is not None:
        load = f", {progress.concurrency} users"
    else:
        load = "" if progress.rate_per_s is None else f", {progress.rate_per_s:.3g}/s"
    return f"{progress.stage}, block {progress.block + 1}, {progress.variant}{load}"


def ttft(progress: Progress) -> str:
    """`P50 31.0, P95 48.2 ms`, of the last requests; `-` before the first."""
    if progress.ttft_ms is None:
        return "-"
    p50, p95 = progress.ttft_ms
    return f"P50 {number(p50)}, P95 {number(p95)} ms"


def duration(seconds: float) -> str:
    """`1:02:05` or `2:05`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
