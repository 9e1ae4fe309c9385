"""How long answers may go on, and be silent; and the end of all of them when a replica must go."""

import asyncio
from enum import StrEnum
from typing import Any, Self


class Ending(StrEnum):
    """How an answer that had begun came to its end."""

    WHOLE = "whole"
    BROKE_OFF = "broke_off"
    """Its connection ended before it did."""
    SILENT = "silent"
    """Its variant said nothing for too long."""
    DEADLINE = "deadline"
    """The request's time was up."""
    STOPPED = "stopped"
    """The router's replica was stopped."""

    @property
    def is_variants_fault(self) -> bool:
        """Whether it speaks against the variant."""
        return self in (Ending.BROKE_OFF, Ending.SILENT)


class AnswerLimits:
    """The limits of one router replica, and the answers under way in it."""

    def __init__(self) -> None:
        self.idle_s: float | None = None
        """How long a variant may say nothing in the middle of an answer."""
        self.waiting: set[asyncio.Timeout] = set()
        """Around what waits for the first byte of an answer; stopping ends them too."""
        self.is_stopped = False
        self._running: set[AnswerLimit] = set()

    def begin(self, left_s: float | None = None) -> "AnswerLimit":
        """For one answer, that may take `left_s` more seconds; enter it around its bytes."""
        limit = AnswerLimit(self._running, self.idle_s, left_s)
        if self.is_stopped:
            limit.end(Ending.STOPPED)
        return limit

    def stop(self) -> int:
        """End every answer, those that are still to begin too. Returns how many were under way."""
        self.is_stopped = True
        running, waiting = tuple(self._running), tuple(self.waiting)
        for limit in running:
            limit.end(Ending.STOPPED)
        for timeout in waiting:
            timeout.reschedule(asyncio.get_running_loop().time())
        return len(running) + len(waiting)


class AnswerLimit:
    """Raises TimeoutError in its block when the answer must end; `ending` then says why.

    A piece that passes only writes down the time: one timer looks at it, no more often than the
    limits are long.
    """

    __slots__ = (
        "_end_s",
        "_idle_s",
        "_running",
        "_source",
        "_timeout",
        "_timer",
        "ending",
        "last_s",
        "loop",
    )

    def __init__(
        self, running: "set[AnswerLimit]", idle_s: float | None, left_s: float | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.last_s = self.loop.time()
        """When the last piece passed, by the loop's clock."""
        self.ending: Ending | None = None
        self._running = running
        self._idle_s = idle_s
        self._end_s = None if left_s is None else self.last_s + left_s
        self._source: Any = None
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    def of(self, answer: Any) -> Self:
        """Set `answer`, whose `held_back` says that its client is slow and not its variant."""
        self._source = answer
        return self

    def end(self, ending: Ending) -> None:
        """End the answer now, or where its block is entered."""
        if self.ending is None:
            self.ending = ending
            if self in self._running:
                self._timeout.reschedule(self.loop.time())

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._running.add(self)
        if self.ending is not None:
            self._timeout.reschedule(self.loop.time())
        else:
            self._look()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._running.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(*error)

    def _look(self) -> None:
        now_s = self.loop.time()
        if self._end_s is not None and now_s >= self._end_s:
            self.end(Ending.DEADLINE)
            return
        if self._source is not None and self._source.held_back:
            self.last_s = now_s
        due_s = self._end_s
        if self._idle_s is not None:
            idle_end_s = self.last_s + self._idle_s
            if now_s >= idle_end_s:
                self.end(Ending.SILENT)
                return
            due_s = idle_end_s if due_s is None else min(due_s, idle_end_s)
        if due_s is not None:
            self._timer = self.loop.call_at(due_s, self._look)
