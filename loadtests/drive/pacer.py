"""Open-loop load: one cell on one load process, a greenlet per arrival.

Locust's own users wait for their answer before they send again, so a server that stands still
is asked less and looks better (coordinated omission). Here arrivals come from the plan alone.
Reading a finished stream takes as long as receiving dozens of tokens, so it waits until neither
an arrival nor a token is due. `make bench-load` measures, a core here and one for the server, 300
requests/s of 64 tokens: evenly spaced on a quiet machine, lag P50 0.11 ms, P99 0.18 ms, max 3.0
ms, 29 % of the core; Poisson, at a load average of 6 by others, P50 0.13 ms, P99 4.2 ms, 32 %.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import gevent
from gevent.pool import Group
from gevent.queue import Queue

from loadtests.drive.alarm import Alarm
from loadtests.drive.client import Exchange, HttpTarget
from loadtests.drive.messages import Shard
from loadtests.drive.outbox import NO_SERVER
from loadtests.drive.outcome import Arrival
from loadtests.records.record import CellRun, ErrorClass, RequestRecord

CHAT_PATH = "/v1/chat/completions"
DRAIN_GRACE_S = 5.0
BURST = 16
"""Arrivals that are due already go out so many at a time before anything else gets its turn."""
MADE_AT_ONCE = 200
READ_BACKLOG = 256
"""Finished streams beyond which reading no longer waits for an idle moment: memory is finite."""
NO_SERVER_PAUSE_S = 0.05
"""A closed-loop user that found no server waits this long: refusals come back at once."""


class CellPacer:
    """Sends one shard's requests and hands each record to `on_record` once the request is over.

    Make it before the cell starts: the bytes of every request are made here. `in_flight` may be
    read at any time.
    """

    def __init__(
        self, shard: Shard, target: HttpTarget, on_record: Callable[[RequestRecord], None]
    ) -> None:
        self._shard = shard
        self._target = target
        self._on_record = on_record
        self._requests = [self._request(nth) for nth in range(len(shard.bodies))]
        self._open: dict[int, tuple[Arrival, int | None]] = {}
        self._finished: Queue = Queue()
        self._group = Group()
        self._running: gevent.Greenlet | None = None
        self._has_failed = False
        self._start_ns = 0
        self._n_records = 0
        self._peak = 0
        self._area_ns = 0
        self._changed_ns = 0
        gc.collect()
        gc.freeze()  # a collection of all that was planned would stop every stream at once

    @property
    def in_flight(self) -> int:
        """Open requests now."""
        return len(self._open)

    def run(self, start_ns: int, clock_error_ns: int = 0) -> CellRun:
        """Play the cell from `start_ns` of the monotonic clock on, until every request is over.

        When the greenlet that runs it is killed, what is in flight is recorded as unfinished.
        Raises at once what goes wrong in our own code.
        """
        cell = self._shard.cell
        self._start_ns = self._changed_ns = start_ns
        self._running = gevent.getcurrent()
        alarm = Alarm()
        reader = gevent.spawn(self._read_finished)
        reader.link_exception(self._failed)
        try:
            alarm.sleep_until(start_ns)
            cpu_start_s = time.process_time()
            if cell.concurrency is None:
                self._arrive(alarm)
            else:
                self._ask_again(cell.concurrency)
            alarm.sleep_until(start_ns + cell.end_ns)
            cpu_s = time.process_time() - cpu_start_s
            self._group.join(self._shard.timeout_s + DRAIN_GRACE_S)
        finally:
            self._abandon()
            self._finished.put(StopIteration)
            reader.join()
            gc.unfreeze()
            alarm.close()
        return CellRun(
            cell=cell.index,
            worker=self._shard.worker,
            n_records=self._n_records,
            t_end_ns=self._since_start(),
            cpu_s=cpu_s,
            in_flight_ns=self._area_ns,
            peak_in_flight=self._peak,
            clock_error_ns=clock_error_ns,
        )

    def _arrive(self, alarm: Alarm) -> None:
        """Open loop: send each request at its time, whatever became of the others."""
        cell, cap = self._shard.cell, self._shard.in_flight_cap
        n_late = 0
        for nth, planned in enumerate(cell.requests):
            if planned.offset_ns > self._since_start():
                alarm.sleep_until(self._start_ns + planned.offset_ns)
            else:
                n_late += 1
                if n_late % BURST == 0:  # else who is always late would let nobody send
                    gevent.sleep(0)
            arrival = self._arrival(self._shard.index(nth), nth, planned.offset_ns)
            if len(self._open) >= cap:
                now_ns = self._since_start()
                self._keep(arrival.unanswered(ErrorClass.REFUSED_BY_CLIENT, None, now_ns))
            else:
                self._admit(arrival)
                sender = self._group.spawn(self._send, arrival, self._requests[nth])
                sender.link_exception(self._failed)

    def _ask_again(self, concurrency: int) -> None:
        """Closed loop: so many users, each of whom asks again once it has its answer."""
        turns = itertools.count()
        for _ in range(concurrency):
            self._group.spawn(self._user, turns).link_exception(self._failed)

    def _user(self, turns: Iterator[int]) -> None:
        cell = self._shard.cell
        while (now_ns := self._since_start()) < cell.end_ns:
            turn = next(turns)
            nth = turn % len(self._requests)
            arrival = self._arrival(self._shard.index(turn), nth, now_ns)
            self._admit(arrival)
            exchange = self._send(arrival, self._requests[nth])
            if exchange.error in NO_SERVER:
                gevent.sleep(NO_SERVER_PAUSE_S)

    def _arrival(self, index: int, nth: int, t_sched_ns: int) -> Arrival:
        cell = self._shard.cell
        planned = cell.requests[nth]
        return Arrival(
            cell=cell.index,
            index=index,
            worker=self._shard.worker,
            variant=cell.variant,
            phase=planned.phase if cell.concurrency is None else cell.phase_at(t_sched_ns),
            t_sched_ns=t_sched_ns,
            max_tokens=planned.max_tokens,
            kind=planned.kind,
            session=planned.session,
            planned_input_tokens=planned.input_tokens,
        )

    def _send(self, arrival: Arrival, request: bytes) -> Exchange:
        self._open[arrival.index] = arrival, self._since_start()
        exchange = self._target.exchange(request, self._shard.timeout_s)
        self._count()
        del self._open[arrival.index]
        if self._shard.cell.concurrency is not None:  # the plan of a user is to send now
            arrival = replace(arrival, t_sched_ns=exchange.t_send_ns - self._start_ns)
        self._finished.put((arrival, exchange))
        return exchange

    def _read_finished(self) -> None:
        for arrival, exchange in self._finished:
            if self._finished.qsize() < READ_BACKLOG:
                gevent.idle()
            else:
                gevent.sleep(0)
            try:
                record = arrival.record(exchange, self._start_ns)
            except Exception as error:  # one server's odd answer must not end the run
                record = arrival.unreadable(exchange, self._start_ns, error)
            self._keep(record)

    def _keep(self, record: RequestRecord) -> None:
        self._n_records += 1
        self._on_record(record)

    def _abandon(self) -> None:
        """Give up what is in flight; a greenlet that never came to run is recorded too."""
        self._group.kill()
        self._count()
        now_ns = self._since_start()
        while self._open:
            _, (arrival, t_send_ns) = self._open.popitem()
            self._keep(arrival.unanswered(ErrorClass.UNFINISHED, t_send_ns, now_ns))

    def _admit(self, arrival: Arrival) -> None:
        self._count()
        self._open[arrival.index] = arrival, None
        self._peak = max(self._peak, len(self._open))

    def _count(self) -> None:
        """Add the time since the last change to the integral; call it before each change."""
        now_ns = time.monotonic_ns()
        self._area_ns += len(self._open) * (now_ns - self._changed_ns)
        self._changed_ns = now_ns

    def _since_start(self) -> int:
        return time.monotonic_ns() - self._start_ns

    def _failed(self, greenlet: gevent.Greenlet) -> None:
        if not self._has_failed:
            self._has_failed = True
            gevent.kill(self._running, greenlet.exception)

    def _request(self, nth: int) -> bytes:
        if nth % MADE_AT_ONCE == 0:
            gevent.sleep(0)  # heartbeats get their turn
        body, session = self._shard.bodies[nth], self._shard.cell.requests[nth].session
        headers = {} if session is None else {"x-session-id": session}
        return self._target.request("POST", CHAT_PATH, body, headers)
