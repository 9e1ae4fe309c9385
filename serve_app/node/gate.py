"""The start gate: one engine at a time starts on a device, the largest first, and only if it fits.

Engines that start together bill each other's memory to themselves, and take more than the sum of
what they hold later. So each holds its devices' locks from before its first allocation until it is
ready. The kernel holds the locks (`locks`), so they are gone with a replica that is killed; the
memory of a dead neighbour takes longer, and is waited for. All waiting is polling: the event loop
stays free, and a start that is cancelled leaves nothing behind.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serve_app.domain.errors import EngineError
from serve_app.domain.units import format_bytes
from serve_app.node.devices import DeviceMemory
from serve_app.node.locks import RecordLock, lock_holder
from serve_app.node.registry import reap_orphans, variants_by_pid
from serve_app.node.tickets import Ticket, ahead_of, post_ticket, posted_tickets

logger = logging.getLogger("ray.serve")

_MAX_NAME = 128


@dataclass(frozen=True)
class StartNeed:
    """What one engine will hold on each of its devices; `why` explains the number in errors."""

    variant: str
    need_bytes: int
    why: str = ""

    def describe(self) -> str:
        """As `variant awq needs 4.80 GiB`."""
        return f"variant {self.variant} needs {format_bytes(self.need_bytes)}{self.why}"


@dataclass(frozen=True)
class GateTimes:
    """`settle_s`: how long one waits for others that start at the same moment, before the largest
    goes first. `overtake_s`: see `tickets.start_order`. `lock_timeout_s` bounds the wait for the
    turn, `memory_timeout_s` that for a dead neighbour's memory, while the turn is held.
    """

    settle_s: float = 1.0
    overtake_s: float = 60.0
    lock_timeout_s: float = 1800.0
    memory_timeout_s: float = 120.0
    poll_s: float = 0.1
    report_every_s: float = 10.0


class _Note(msgspec.Struct):
    """What a holder writes into its lock's file."""

    variant: str
    pid: int
    since_s: float


@dataclass(frozen=True)
class StartGate:
    """The gate of one machine: all who use the same directory take turns."""

    directory: Path
    times: GateTimes = GateTimes()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    @asynccontextmanager
    async def turn(
        self, need: StartNeed, devices: Sequence[DeviceMemory]
    ) -> AsyncIterator[dict[str, int]]:
        """Hold the turn on all devices while the engine starts; gives their free bytes before it.

        Raises EngineError if the turn or the memory does not come in time, or never can.
        """
        for device in devices:
            if (total := device.total_bytes()) < need.need_bytes:
                raise EngineError(
                    f"{need.describe()} on {device.key} "
                    f"and all of it is {format_bytes(total)}: lower kv_cache_memory_bytes, "
                    "max_num_seqs or max_model_len, or give it a larger device (`quantile plan`)"
                )
        locks = await self._wait_for_turn(need, sorted(device.key for device in devices))
        try:
            yield await self._wait_for_memory(need, devices)
        finally:
            for lock in locks:
                lock.release()

    async def _wait_for_turn(self, need: StartNeed, keys: list[str]) -> list[RecordLock]:
        times, start_s = self.times, self.clock()
        mine = Ticket(need.variant, os.getpid(), need.need_bytes, tuple(keys), start_s)
        ticket = post_ticket(self._tickets, mine)
        report_s = start_s + times.report_every_s
        try:
            while True:
                now_s = self.clock()
                if now_s - start_s >= times.settle_s:
                    ahead = ahead_of(mine, posted_tickets(self._tickets), times.overtake_s)
                    if not ahead and (locks := self._try_all(keys, need.variant)):
                        return locks
                if now_s - start_s >= times.lock_timeout_s:
                    raise EngineError(
                        f"variant {need.variant} got no turn to start on {', '.join(keys)} within "
                        f"{times.lock_timeout_s:g} s: {self._why(mine)}; see that replica's log, "
                        "or end it"
                    )
                if now_s >= report_s:
                    logger.info("variant %s waits to start: %s", need.variant, self._why(mine))
                    report_s = now_s + times.report_every_s
                await self.sleep(times.poll_s)
        finally:
            ticket.release(unlink=True)

    def _try_all(self, keys: list[str], variant: str) -> list[RecordLock]:
        """All the locks, taken in the order of their keys, or none (an empty list)."""
        note = msgspec.json.encode(_Note(variant, os.getpid(), self.clock()))
        taken: list[RecordLock] = []
        for key in keys:
            lock = RecordLock(self._lock_path(key))
            if not lock.acquire(note):
                for other in taken:
                    other.release()
                return []
            taken.append(lock)
        return taken

    async def _wait_for_memory(
        self, need: StartNeed, devices: Sequence[DeviceMemory]
    ) -> dict[str, int]:
        times, start_s = self.times, self.clock()
        report_s = start_s + times.report_every_s
        while True:
            await asyncio.to_thread(reap_orphans, self.directory)
            free = {device.key: device.free_bytes() for device in devices}
            short = [device for device in devices if free[device.key] < need.need_bytes]
            if not short:
                return free
            now_s = self.clock()
            variants = variants_by_pid(self.directory)
            why = "; ".join(_shortage(need, d, free[d.key], variants) for d in short)
            if now_s - start_s >= times.memory_timeout_s:
                raise EngineError(
                    f"{why}, after {times.memory_timeout_s:g} s: end what holds it, lower "
                    "kv_cache_memory_bytes, max_num_seqs or max_model_len, or place the variant "
                    "elsewhere (`quantile plan` says what fits together)"
                )
            if now_s >= report_s:
                logger.warning("%s; waiting for it", why)
                report_s = now_s + times.report_every_s
            await self.sleep(times.poll_s)

    def _why(self, mine: Ticket) -> str:
        """Who holds the locks, and how many go first."""
        reasons = []
        for key in mine.devices:
            holder = lock_holder(self._lock_path(key))
            if holder is not None:
                reasons.append(f"{key} is held by {self._name(holder.pid, holder.note)}")
        ahead = ahead_of(mine, posted_tickets(self._tickets), self.times.overtake_s)
        if ahead:
            names = ", ".join(f"{ticket.variant} (pid {ticket.pid})" for ticket in ahead)
            reasons.append(f"before it in the queue: {names}")
        return "; ".join(reasons) or "its turn is next"

    def _name(self, pid: int, note: bytes) -> str:
        """By the holder's note, if it is really the holder's: it is written after the lock."""
        try:
            written = msgspec.json.decode(note, type=_Note)
        except msgspec.DecodeError:
            return f"pid {pid}"
        if written.pid != pid:
            return f"pid {pid}"
        held_s = self.clock() - written.since_s
        return f"variant {written.variant} (pid {pid}), since {held_s:.0f} s"

    @property
    def _tickets(self) -> Path:
        return self.directory / "tickets"

    def _lock_path(self, key: str) -> Path:
        return self.directory / f"{key.replace('/', '_')[:_MAX_NAME]}.lock"


def _shortage(
    need: StartNeed, device: DeviceMemory, free_bytes: int, variants: Mapping[int, str]
) -> str:
    """Need, have, and who holds the rest."""
    holders = ", ".join(
        f"pid {holding.pid}"
        + (f" (variant {variants[holding.pid]})" if holding.pid in variants else "")
        + f" {holding.describe()}"
        for holding in device.holders()
    )
    return (
        f"{need.describe()} on {device.key}; "
        f"{format_bytes(free_bytes)} of {format_bytes(device.total_bytes())} are free, "
        f"held by {holders or 'processes that the device does not name'}"
    )
