"""How long a body may take to come, and how many may be awaited at once."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Self


class PendingBodies:
    """The bodies that are awaited now; beyond `limit`, the one awaited longest is given up.

    Uploads that stall would otherwise take every place that Serve has for requests (its
    `max_ongoing_requests`) for as long as they are waited for. An honest body comes within
    milliseconds, and is never the oldest of many.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._deadlines: OrderedDict[BodyDeadline, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._deadlines)

    def add(self, deadline: "BodyDeadline") -> None:
        """Await one more, and give up the oldest if that is too many."""
        self._deadlines[deadline] = None
        if len(self._deadlines) > self.limit:
            oldest, _ = self._deadlines.popitem(last=False)
            oldest.give_up()

    def remove(self, deadline: "BodyDeadline") -> None:
        """It has come, or is not awaited any more."""
        self._deadlines.pop(deadline, None)


@dataclass(frozen=True, slots=True)
class BodyTimes:
    """How long a body may take to come, in seconds; None is without end."""

    piece_s: float | None = None
    """Between two pieces, and before the first."""
    whole_s: float | None = None
    """From the first look at it to its end."""
    pending: PendingBodies | None = None
    """Where it is counted while it is awaited; None: nowhere."""

    def __str__(self) -> str:
        piece = "without end" if self.piece_s is None else f"{self.piece_s:g} s"
        whole = "without end" if self.whole_s is None else f"{self.whole_s:g} s"
        told = f"{piece} for each piece and {whole} for all"
        if self.pending is not None:
            told += f", less when more than {self.pending.limit} bodies are awaited"
        return told


ANY_TIME = BodyTimes()


class BodyDeadline:
    """The times of one body as one timeout: `async with` raises TimeoutError at its end."""

    __slots__ = ("_end_s", "_is_given_up", "_loop", "_pending", "_piece_s", "_timeout")

    def __init__(self, times: BodyTimes) -> None:
        self._loop = asyncio.get_running_loop()
        self._piece_s = times.piece_s
        self._pending = times.pending
        self._is_given_up = False
        self._end_s = None if times.whole_s is None else self._loop.time() + times.whole_s
        self._timeout = asyncio.timeout_at(self._next_s())

    def _next_s(self) -> float | None:
        if self._piece_s is None:
            return self._end_s
        piece_end_s = self._loop.time() + self._piece_s
        return piece_end_s if self._end_s is None else min(piece_end_s, self._end_s)

    def again(self) -> None:
        """A piece has come."""
        if self._piece_s is not None and not self._is_given_up:
            self._move(self._next_s())

    def give_up(self) -> None:
        """Wait no longer."""
        self._is_given_up = True
        self._move(self._loop.time())

    def _move(self, end_s: float | None) -> None:
        if not self._timeout.expired():  # one that is just ending cannot be moved
            self._timeout.reschedule(end_s)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self._pending is not None:
            self._pending.add(self)
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self._pending is not None:
            self._pending.remove(self)
        await self._timeout.__aexit__(*error)
