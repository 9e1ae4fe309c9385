"""The thread in which answers are compared and the log is written."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from serve_app.config.shadow import ShadowLogConfig
from serve_app.routing.shadowing import is_logged
from serve_app.serving.shadow_compare import Pair, Result, compare, line_of
from serve_app.serving.shadow_log import ShadowLog

_MAX_WAITING = 64
"""Comparisons and lines that wait for the thread; it does some hundreds a second."""
Done = TypeVar("Done")

logger = logging.getLogger("ray.serve")


class ShadowWork:
    """One thread, made when first needed. `wall_clock` stamps the log's lines."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._thread: ThreadPoolExecutor | None = None
        self._log: ShadowLog | None = None
        self._key = os.urandom(32)
        self._n_waiting = 0
        self._counting = threading.Lock()
        self._n_lines = self._n_lines_lost = 0

    def configure(self, log: ShadowLogConfig | None) -> None:
        """Write to this log from the next line on; one that failed is tried again."""
        before = self._log
        if before and before.config == log and before.failure is None:
            return
        self._log = ShadowLog(log) if log else None
        if before:
            self._submit(before.close)

    def close(self) -> None:
        """Close the log and end the thread once it has done what it is at; does not wait for it."""
        self.configure(None)
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    @property
    def has_room(self) -> bool:
        """Whether another comparison may wait for the thread."""
        return self._n_waiting < _MAX_WAITING

    async def compare(self, pair: Pair) -> Result:
        """Compare, and write the log's line."""
        log = self._log_for(pair)

        def work() -> Result:
            result = compare(pair)
            if log is not None:
                self._write(log, pair, result)
            return result

        return await asyncio.wrap_future(self._submit(work))

    def note(self, pair: Pair, result: Result) -> None:
        """Write the log's line for answers that were not compared, as soon as there is time."""
        log = self._log_for(pair)
        if log is None:
            return
        if self.has_room:
            self._submit(lambda: self._write(log, pair, result))
        else:
            self._n_lines_lost += 1

    def view(self) -> dict[str, Any] | None:
        """The log's state as JSON; None where there is none."""
        if self._log is None:
            return None
        return {
            "path": self._log.config.path,
            "lines": self._n_lines,
            "lines_lost": self._n_lines_lost,
            "failure": self._log.failure,
        }

    def _log_for(self, pair: Pair) -> ShadowLog | None:
        log = self._log
        if log is None or log.failure is not None:
            return None
        return log if is_logged(pair.original.request_id, log.config.sample_bp) else None

    def _write(self, log: ShadowLog, pair: Pair, result: Result) -> None:
        """In the thread. What goes wrong with a line must not cost the comparison."""
        try:
            line = line_of(
                pair,
                result,
                time_s=self._wall_clock(),
                texts=log.config.texts,
                key=self._key,
            )
        except Exception:
            logger.exception("a line of the shadow log could not be made")
            self._n_lines_lost += 1
            return
        if log.write(line):
            self._n_lines += 1
        else:
            self._n_lines_lost += 1

    def _submit(self, work: Callable[[], Done]) -> "Future[Done]":
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._count(1)
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def _count(self, change: int) -> None:
        """Work ends in its thread, or here if it is cancelled before its turn."""
        with self._counting:
            self._n_waiting += change
