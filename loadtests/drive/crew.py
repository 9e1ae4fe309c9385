"""The workers of a run as the conductor sees them: who is there, their clocks, who is lost."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import gevent
import msgspec
from gevent.queue import Empty, Queue
from locust.env import Environment
from locust.rpc import Message
from locust.runners import STATE_MISSING, LocalRunner, Runner

from loadtests.drive import messages as say
from loadtests.records.manifest import Ending, EndReason

PINGS = 7
"""Round trips by which a clock is set; the shortest one counts."""
WATCH_S = 0.2
STOP_WAIT_S = 8.0
M = TypeVar("M")
Take = Callable[[str, say.ToMaster], None]
"""Is given what a worker says, and the id of the worker."""


class RunEndedError(Exception):
    """The run ends before its plan does."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.detail)
        self.ending = ending


@dataclass
class Member:
    """One worker. `offset_ns`: its clock less ours, known to within `clock_error_ns`."""

    client_id: str
    index: int
    host: str
    pid: int
    offset_ns: int = 0
    clock_error_ns: int = 0

    def __str__(self) -> str:
        return f"worker {self.index} (process {self.pid} on {self.host})"


class Processes(Protocol):
    """The worker processes that we started ourselves."""

    def ended(self) -> dict[int, int]:
        """Exit status by process id of those that are over; negative: killed by that signal."""


class Crew:
    """Speaks with the workers. Every wait ends with RunEndedError once `end` is called.

    `address` is the HOST:PORT at which workers find us.
    """

    def __init__(
        self, runner: Runner, n_workers: int, processes: Processes, address: str = ""
    ) -> None:
        self.members: list[Member] = []
        self._n_workers = n_workers
        self._by_id: dict[str, Member] = {}
        self._runner = runner
        self._processes = processes
        self._address = address
        self._host = socket.gethostname()
        self._lost: set[str] = set()
        self._inbox: Queue = Queue()
        self._decoder = msgspec.msgpack.Decoder(say.ToMaster)
        runner.register_message(say.TO_MASTER, self._hear)

    def end(self, reason: EndReason, detail: str) -> None:
        """End the run; may be called from any greenlet, and more than once."""
        self._inbox.put(Ending(reason=reason, detail=detail))

    def gather(self, limit_s: float) -> None:
        """Wait until all workers are there, `limit_s` at most; who comes later is sent away."""
        limit = gevent.Timeout(limit_s)
        try:
            with limit:
                while len(self.members) < self._n_workers:
                    self._next()
        except gevent.Timeout as over:
            if over is not limit:
                raise
            why = (
                f"need {self._n_workers} workers, have {len(self.members)} after {limit_s:g} s: "
                f"start `quantile load-worker --master {self._address}`"
            )
            raise RunEndedError(Ending(reason=EndReason.FAILED, detail=why)) from over

    def tell(self, member: Member, message: say.ToWorker) -> None:
        """Send `message` to one worker."""
        self._send(member.client_id, message)

    def tell_all(self, message: say.ToWorker) -> None:
        """Send `message` to every worker."""
        for member in self.members:
            self.tell(member, message)

    def each(self, kind: type[M], take: Take) -> None:
        """A barrier: wait for one `kind` from every worker. `take` sees all that is said."""
        waiting = {member.client_id for member in self.members}
        while waiting:
            client_id, message, _ = self._next()
            take(client_id, message)
            if isinstance(message, kind):
                waiting.discard(client_id)

    def set_clocks(self) -> None:
        """Learn every worker's clock, by the shortest of some round trips.

        The clocks of two machines drift by milliseconds in minutes: set them before each cell.
        """
        if isinstance(self._runner, LocalRunner):
            return
        for member in self.members:
            trips = [self._ping(member) for _ in range(PINGS)]
            trip_ns, member.offset_ns = min(trips)
            member.clock_error_ns = trip_ns // 2

    def stop(self, take: Take) -> None:
        """Have every worker give up what is in flight; wait for the records of those that can."""
        waiting = {m.client_id for m in self.members} - self._lost
        for client_id in waiting:
            self._send(client_id, say.Stop())
        deadline_s = time.monotonic() + STOP_WAIT_S
        while (waiting - self._lost and time.monotonic() < deadline_s) or not self._inbox.empty():
            try:
                item = self._inbox.get(timeout=WATCH_S)
            except Empty:
                continue
            if isinstance(item, Ending):
                continue
            client_id, message, _ = item
            take(client_id, message)
            if isinstance(message, say.Stopped | say.Trouble):
                waiting.discard(client_id)

    def watch(self) -> None:
        """End the run when a worker is lost; never returns."""
        while True:
            gevent.sleep(WATCH_S)
            ended = self._processes.ended()
            for member in self.members:
                is_ours = member.host == self._host
                status = ended.pop(member.pid, None) if is_ours else None
                why = self._why_gone(member) if status is None else _of_status(status)
                if why is not None and member.client_id not in self._lost:
                    self._lost.add(member.client_id)
                    self.end(EndReason.WORKER_LOST, f"{member}: {why}")
            if len(self.members) < self._n_workers:  # while we wait for them
                for pid, status in ended.items():
                    self.end(EndReason.WORKER_LOST, f"process {pid}: {_of_status(status)}")

    def _why_gone(self, member: Member) -> str | None:
        if isinstance(self._runner, LocalRunner):
            return None
        client = self._runner.clients.get(member.client_id)
        if client is None:
            return "it left"
        return "its heartbeat is missing" if client.state == STATE_MISSING else None

    def _ping(self, member: Member) -> tuple[int, int]:
        """Round trip, and the worker's clock less ours, in nanoseconds."""
        sent_ns = time.monotonic_ns()
        self.tell(member, say.Ping())
        while True:
            client_id, message, came_ns = self._next()
            if isinstance(message, say.Pong) and client_id == member.client_id:
                return came_ns - sent_ns, message.t_ns - (sent_ns + came_ns) // 2

    def _next(self) -> tuple[str, say.ToMaster, int]:
        item = self._inbox.get()
        if isinstance(item, Ending):
            raise RunEndedError(item)
        client_id, message, _ = item
        if isinstance(message, say.Trouble):
            self._lost.add(client_id)
            detail = f"{self._by_id[client_id]}: {message.detail}"
            raise RunEndedError(Ending(reason=EndReason.FAILED, detail=detail))
        return item  # type: ignore[no-any-return]

    def _hear(self, environment: Environment, msg: Message, **_: object) -> None:
        came_ns = time.monotonic_ns()
        message = self._decoder.decode(msg.data)
        client_id = msg.node_id
        if isinstance(message, say.Hello) and client_id not in self._by_id:
            if len(self.members) == self._n_workers:
                self._send(client_id, say.Leave())
                return
            member = Member(client_id, len(self.members), message.host, message.pid)
            self.members.append(member)
            self._by_id[client_id] = member
        if client_id in self._by_id:
            self._inbox.put((client_id, message, came_ns))

    def _send(self, client_id: str, message: say.ToWorker) -> None:
        self._runner.send_message(say.TO_WORKER, msgspec.msgpack.encode(message), client_id)


def _of_status(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
