"""Who waits to start an engine on this machine, and who of them goes first.

A ticket is a file that its owner holds a kernel lock on: a waiter that died has no ticket.
"""

import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serve_app.node.locks import RecordLock, lock_holder

_SUFFIX = ".ticket"
_UNFINISHED = ".unfinished"
_UNFINISHED_MAX_AGE_S = 60.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Ticket:
    """One engine that waits for its start; `arrived_s` by the machine's monotonic clock."""

    variant: str
    pid: int
    need_bytes: int
    devices: tuple[str, ...]
    arrived_s: float


def post_ticket(directory: Path, ticket: Ticket) -> RecordLock:
    """Make the ticket known to all who wait; `release(unlink=True)` withdraws it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    name = f"{ticket.pid}-{time.monotonic_ns()}-{next(_numbers)}"
    lock = RecordLock(directory / f"{name}{_UNFINISHED}")
    acquired = lock.acquire(msgspec.json.encode(ticket))
    assert acquired, f"{lock.path} is not unique"
    lock.rename(directory / f"{name}{_SUFFIX}")  # seen only once it is locked and written
    return lock


def posted_tickets(directory: Path) -> list[Ticket]:
    """The tickets of those who still wait; what the dead left behind is removed."""
    tickets = []
    for path in directory.glob(f"*{_SUFFIX}"):
        holder = lock_holder(path)
        if holder is None:
            path.unlink(missing_ok=True)
        else:
            tickets.append(msgspec.json.decode(holder.note, type=Ticket))
    for path in directory.glob(f"*{_UNFINISHED}"):
        if _age_s(path) > _UNFINISHED_MAX_AGE_S:
            path.unlink(missing_ok=True)
    return tickets


def start_order(tickets: Iterable[Ticket], overtake_s: float) -> list[Ticket]:
    """Largest first, but nobody is overtaken by one that came over `overtake_s` after it.

    Without that bound a large engine that fails and comes back again and again would keep the
    small ones from ever starting.
    """
    waiting = sorted(tickets, key=lambda ticket: (ticket.arrived_s, ticket.pid))
    order = []
    while waiting:
        last_s = waiting[0].arrived_s + overtake_s
        eligible = (ticket for ticket in waiting if ticket.arrived_s <= last_s)
        first = min(eligible, key=lambda t: (-t.need_bytes, t.arrived_s, t.pid))
        waiting.remove(first)
        order.append(first)
    return order


def ahead_of(mine: Ticket, tickets: Iterable[Ticket], overtake_s: float) -> list[Ticket]:
    """Who must start before `mine` does: earlier in the order, and on a device of its own."""
    order = start_order({*tickets, mine}, overtake_s)
    before = order[: order.index(mine)]
    return [ticket for ticket in before if set(ticket.devices) & set(mine.devices)]


def _age_s(path: Path) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0
