"""How far a transfer is: told to a terminal, or to a log."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from serve_app.domain.units import format_bytes
from serve_app.store.manifest import Advance

LOG_EVERY_S = 10.0


class Progress(Protocol):
    """Who is told."""

    def said(self, text: str) -> None:
        """Something that happened once."""

    def moving(self, what: str, total_bytes: int) -> Advance:
        """Bytes begin to move; the callable is told of each that did, by several threads."""


class Silent:
    """Tells nobody."""

    def said(self, text: str) -> None:
        """Nothing."""

    def moving(self, what: str, total_bytes: int) -> Advance:
        """Nothing."""
        return lambda n_bytes: None


class LogProgress:
    """A line now and then, with the share done and the speed since the last line."""

    def __init__(
        self,
        logger: logging.Logger,
        every_s: float = LOG_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock

    def said(self, text: str) -> None:
        """One line."""
        self._logger.info("%s", text)

    def moving(self, what: str, total_bytes: int) -> Advance:
        """A line at once, then at intervals, and one at the end."""
        lock = threading.Lock()
        done = shown = 0
        shown_s = self._clock()
        self._logger.info("%s: %s", what, format_bytes(total_bytes))

        def advance(n_bytes: int) -> None:
            nonlocal done, shown, shown_s
            with lock:
                done += n_bytes
                now_s = self._clock()
                is_end = done == total_bytes and n_bytes > 0
                if now_s - shown_s < self._every_s and not is_end:
                    return
                speed = max(0, done - shown) / max(now_s - shown_s, 1e-3)
                shown, shown_s = done, now_s
                share = done / total_bytes if total_bytes else 1.0
            self._logger.info(
                "%s: %s of %s (%.0f %%), %s/s",
                *(what, format_bytes(done), format_bytes(total_bytes)),
                *(100 * share, format_bytes(int(speed))),
            )

        return advance


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Bars on standard error while this lasts; where that is no terminal, lines."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True, markup=False, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:

        class Terminal:
            def said(self, text: str) -> None:
                console.print(text, soft_wrap=True)

            def moving(self, what: str, total_bytes: int) -> Advance:
                if not console.is_terminal:
                    console.print(f"{what}: {format_bytes(total_bytes)}", soft_wrap=True)
                task = bars.add_task(what, total=total_bytes)
                return lambda n_bytes: bars.update(task, advance=n_bytes)

        yield Terminal()
