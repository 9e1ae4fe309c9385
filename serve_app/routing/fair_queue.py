"""Who is served now, who waits, and who is next: places shared fairly between tenants.

Round robin over tenants that wait (J. Nagle, RFC 970, 1985), not first come first served: one
tenant with a thousand requests delays another's first by one turn. When the room is full, the
newest of the longest line makes way (P. McKenney, "Stochastic fairness queueing", 1990).
Pure: it decides; what a waiting request does meanwhile is the caller's.
"""

from collections import deque
from collections.abc import Mapping
from enum import StrEnum, auto


class Turn(StrEnum):
    """What became of a request that waits."""

    WAITING = auto()
    SERVED = auto()
    """It has a place, and must give it back by `FairQueue.leave`."""
    DISPLACED = auto()
    """The room was full, and another tenant had less of it."""
    GONE = auto()
    """It gave up, or was served and has left."""


class Waiter:
    """One request in a line."""

    __slots__ = ("line", "turn")

    def __init__(self, line: "Line") -> None:
        self.line = line
        self.turn = Turn.WAITING


class Line:
    """One tenant: its requests that are served and, in order of arrival, those that wait."""

    __slots__ = ("has_turn", "limit", "n_served", "tenant", "waiters")

    def __init__(self, tenant: str, limit: int | None) -> None:
        self.tenant = tenant
        self.limit = limit
        self.n_served = 0
        self.has_turn = False
        self.waiters: dict[Waiter, None] = {}  # in order of arrival, and quick to make

    @property
    def is_below_limit(self) -> bool:
        """Whether the tenant's own limit lets one more be served."""
        return self.limit is None or self.n_served < self.limit


class FairQueue:
    """`limit` requests are served at once (None: any number); at most `room` wait.

    Between two calls no request waits that could be served. So a free place is a newcomer's, and
    whoever waits is woken by a call of `leave`, `give_up` or `resize`, which return whom they
    served.
    """

    def __init__(self, limit: int | None, room: int) -> None:
        self.n_served = 0
        self.n_waiting = 0
        self._limit = limit
        self._room = room
        self._lines: dict[str, Line] = {}
        self._turns: deque[Line] = deque()

    def line(self, tenant: str, limit: int | None) -> Line:
        """The tenant's line, made with the tenant's own `limit` if there is none."""
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = Line(tenant, limit)
        return line

    def enter(self, line: Line) -> bool:
        """Serve a newcomer at once, if there is a place for it."""
        if self._limit is not None and self.n_served >= self._limit:
            return False
        if line.limit is not None and line.n_served >= line.limit:
            return False
        self.n_served += 1
        line.n_served += 1
        return True

    def wait(self, line: Line) -> tuple[Waiter | None, Waiter | None]:
        """Let a newcomer wait. Returns it, and the waiter that makes way; None twice is no room."""
        displaced = None
        if self.n_waiting >= self._room:
            longest = max(
                (each for each in self._lines.values() if each.waiters),
                key=lambda each: len(each.waiters),
                default=None,
            )
            if longest is None or len(longest.waiters) <= len(line.waiters) + 1:
                self._forget_if_idle(line)
                return None, None
            displaced = next(reversed(longest.waiters))
            self._remove(displaced, Turn.DISPLACED)
            self._forget_if_idle(displaced.line)
        waiter = Waiter(line)
        line.waiters[waiter] = None
        self.n_waiting += 1
        self._take_turns(line)
        return waiter, displaced

    def n_before(self, line: Line) -> int:
        """How many would be served before a newcomer to this line, if nobody else came."""
        own = len(line.waiters)
        others = (len(each.waiters) for each in self._lines.values() if each is not line)
        return own + sum(min(waiters, own + 1) for waiters in others)

    def leave(self, line: Line) -> list[Waiter]:
        """A served request has ended."""
        self.n_served -= 1
        line.n_served -= 1
        served = []
        if line.waiters or self._turns:
            self._take_turns(line)
            served = self._serve()
        if not line.n_served:
            self._forget_if_idle(line)
        return served

    def give_up(self, waiter: Waiter) -> list[Waiter]:
        """A waiter leaves. If it was served meanwhile, its place goes to the next."""
        turn = waiter.turn
        if turn is Turn.WAITING:
            self._remove(waiter, Turn.GONE)
            self._forget_if_idle(waiter.line)
            return []
        waiter.turn = Turn.GONE
        return self.leave(waiter.line) if turn is Turn.SERVED else []

    def resize(
        self, limit: int | None, room: int, own_limits: Mapping[str, int | None]
    ) -> list[Waiter]:
        """Other limits from now on. Who is served or waits already may stay."""
        self._limit, self._room = limit, room
        for line in self._lines.values():
            line.limit = own_limits.get(line.tenant, line.limit)
            self._take_turns(line)
        return self._serve()

    def _serve(self) -> list[Waiter]:
        served = []
        while self._turns and (self._limit is None or self.n_served < self._limit):
            line = self._turns.popleft()
            line.has_turn = False
            if not line.waiters or not line.is_below_limit:  # it comes back when that changes
                self._forget_if_idle(line)
                continue
            waiter = next(iter(line.waiters))
            del line.waiters[waiter]
            waiter.turn = Turn.SERVED
            self.n_waiting -= 1
            self.n_served += 1
            line.n_served += 1
            served.append(waiter)
            self._take_turns(line)
        return served

    def _take_turns(self, line: Line) -> None:
        """Put the line at the end of the round, if one of it could be served."""
        if line.waiters and line.is_below_limit and not line.has_turn:
            self._turns.append(line)
            line.has_turn = True

    def _remove(self, waiter: Waiter, turn: Turn) -> None:
        waiter.turn = turn
        del waiter.line.waiters[waiter]
        self.n_waiting -= 1

    def _forget_if_idle(self, line: Line) -> None:
        if not (line.n_served or line.waiters or line.has_turn):
            self._lines.pop(line.tenant, None)
