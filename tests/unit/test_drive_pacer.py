"""The pacer with a target that takes as long as it is told, on gevent alone."""

import time
from dataclasses import replace

import gevent
import pytest

from loadtests.drive.alarm import Alarm
from loadtests.drive.client import Exchange
from loadtests.drive.messages import Shard
from loadtests.drive.outcome import Arrival
from loadtests.drive.pacer import NO_SERVER_PAUSE_S, CellPacer
from loadtests.drive.shard import shards
from loadtests.records.record import ErrorClass, RequestRecord
from tests.fakes.load_cell import a_cell

MS = 1_000_000


class Target:
    """Answers `200` with a whole stream after `takes_s`."""

    def __init__(self, takes_s: float, error: ErrorClass | None = None) -> None:
        self.takes_s, self.error = takes_s, error
        self.open = self.peak = 0
        self.sent: list[bytes] = []

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        return body + b" " + headers.get("x-session-id", "-").encode()

    def exchange(self, request: bytes, timeout_s: float) -> Exchange:
        self.sent.append(request)
        self.open += 1
        self.peak = max(self.peak, self.open)
        exchange = Exchange(t_send_ns=time.monotonic_ns(), status=200, error=self.error)
        try:
            gevent.sleep(self.takes_s)
        finally:
            self.open -= 1
        exchange.t_end_ns = time.monotonic_ns()
        data = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"completion_tokens":1}}\n\n'
        data += b"data: [DONE]\n\n"
        exchange.pieces.append((exchange.t_end_ns, data))
        return exchange


def a_shard(offsets_ms: list[int], *, cap: int = 100, worker: int = 0, **cell: object) -> Shard:
    plan = a_cell(len(offsets_ms), cell.pop("concurrency", None))
    requests = tuple(
        replace(request, offset_ns=ms * MS)
        for request, ms in zip(plan.requests, offsets_ms, strict=True)
    )
    plan = replace(plan, requests=requests, **{"end_ns": 60 * MS, **cell})
    bodies = [b"%d" % i for i in range(len(offsets_ms))]
    return shards(plan, bodies, worker + 1, cap * (worker + 1), 5.0)[worker]


def play(shard: Shard, target: Target):
    records = []
    pacer = CellPacer(shard, target, records.append)
    run = pacer.run(time.monotonic_ns() + 5 * MS, clock_error_ns=7)
    assert pacer.in_flight == 0
    return run, sorted(records, key=lambda record: record.index)


def test_arrivals_wait_for_no_answer_and_the_integral_is_that_of_the_records():
    target = Target(0.05)
    run, records = play(a_shard([0, 10, 20, 30]), target)
    assert target.peak == 4 == run.peak_in_flight
    assert [record.t_sched_ns for record in records] == [0, 10 * MS, 20 * MS, 30 * MS]
    assert all(0 <= r.t_send_ns - r.t_sched_ns < 20 * MS for r in records)
    assert [record.error for record in records] == [None] * 4
    assert [record.session for record in records] == ["s0", "s1", "s2", "s3"]
    assert target.sent == [b"0 s0", b"1 s1", b"2 s2", b"3 s3"]
    spent_ns = sum(record.t_end_ns - record.t_send_ns for record in records)
    assert run.in_flight_ns == pytest.approx(spent_ns, rel=0.05)
    assert run.n_records == 4 and run.clock_error_ns == 7
    assert run.t_end_ns >= records[-1].t_end_ns


def test_what_is_beyond_the_cap_is_never_sent_and_is_a_failure():
    target = Target(0.05)
    run, records = play(a_shard([0, 0, 0, 55], cap=2), target)
    assert target.peak == 2 == run.peak_in_flight
    refused = ErrorClass.REFUSED_BY_CLIENT
    assert [record.error for record in records] == [None, None, refused, None]
    assert (records[2].t_send_ns, run.n_records) == (None, 4)


def test_a_pacer_that_is_late_still_lets_its_requests_out():
    """All are due at once: the first are on their way before the last is spawned."""
    target = Target(0.0)
    _, records = play(a_shard([0] * 200, cap=1000, end_ns=0), target)
    assert len(records) == 200
    assert target.sent[0] == b"0 s0"
    assert records[0].t_send_ns < records[150].t_send_ns
    assert target.peak < 200


def test_users_of_a_closed_loop_ask_as_soon_as_they_are_answered():
    target = Target(0.01)
    shard = a_shard([0, 0, 0], concurrency=2, window_ns=(20 * MS, 40 * MS))
    run, records = play(shard, target)
    assert target.peak == 2 == run.peak_in_flight
    assert 6 <= len(records) <= 14
    assert [record.index for record in records] == list(range(len(records)))
    assert [record.max_tokens for record in records] == [1 + i % 3 for i in range(len(records))]
    assert all(record.t_sched_ns == record.t_send_ns for record in records)
    assert [r.phase for r in records] == sorted(
        (r.phase for r in records), key=["warmup", "measured", "cooldown"].index
    )
    assert {record.phase for record in records} == {"warmup", "measured", "cooldown"}


def test_workers_number_their_requests_apart():
    _, records = play(a_shard([0, 0, 0, 0], worker=1), Target(0.0))
    assert [(record.index, record.worker) for record in records] == [(1, 1), (3, 1)]


def test_a_user_that_finds_no_server_does_not_ask_again_at_once():
    target = Target(0.0, ErrorClass.CONNECT)
    play(a_shard([0], concurrency=1, end_ns=round(2.5 * NO_SERVER_PAUSE_S * 1e9)), target)
    assert 2 <= len(target.sent) <= 3


def test_what_is_in_flight_when_the_cell_is_stopped_is_unfinished():
    records = []
    target = Target(9.0)
    pacer = CellPacer(a_shard([0, 10, 20, 5000], end_ns=9_000 * MS), target, records.append)
    running = gevent.spawn(pacer.run, time.monotonic_ns())
    gevent.sleep(0.05)
    assert pacer.in_flight == 3
    running.kill()
    assert pacer.in_flight == 0 == target.open
    assert sorted(record.index for record in records) == [0, 1, 2]
    assert {record.error for record in records} == {ErrorClass.UNFINISHED}
    assert all(record.t_sched_ns <= record.t_send_ns < record.t_end_ns for record in records)


def test_a_request_that_was_admitted_but_never_ran_is_recorded_too():
    records = []
    pacer = CellPacer(a_shard([0]), Target(9.0), records.append)
    arrive = pacer._arrive

    def arrive_and_end(alarm: Alarm) -> None:
        arrive(alarm)  # the greenlet is made, and has not had its turn
        raise gevent.GreenletExit

    pacer._arrive = arrive_and_end
    gevent.spawn(pacer.run, time.monotonic_ns()).join()
    assert [(record.error, record.t_send_ns) for record in records] == [
        (ErrorClass.UNFINISHED, None)
    ]


def test_an_error_of_ours_ends_the_cell_at_once():
    class Broken(Target):
        def exchange(self, request: bytes, timeout_s: float) -> Exchange:
            raise ZeroDivisionError

    started_s = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        play(a_shard([0], end_ns=20_000 * MS), Broken(0.0))
    assert time.monotonic() - started_s < 5


def test_an_answer_that_cannot_be_read_is_malformed_and_the_others_are_kept(monkeypatch):
    read = Arrival.record

    def read_most(arrival: Arrival, exchange: Exchange, start_ns: int) -> RequestRecord:
        if arrival.index == 1:
            raise MemoryError("no room")
        return read(arrival, exchange, start_ns)

    monkeypatch.setattr(Arrival, "record", read_most)
    run, records = play(a_shard([0, 10, 20]), Target(0.0))
    assert [record.error for record in records] == [None, ErrorClass.MALFORMED, None]
    assert run.n_records == 3
    assert (records[1].status, records[1].detail) == (200, "MemoryError: no room")
    assert records[1].t_sched_ns <= records[1].t_send_ns <= records[1].t_end_ns < 60 * MS


@pytest.mark.parametrize("concurrency", [None, 1])
def test_cpu_is_counted_until_the_planned_end_of_the_cell(concurrency):
    class Straggler(Target):
        """Computes for 0.1 s within the cell and, after its end, for 0.3 s."""

        def exchange(self, request: bytes, timeout_s: float) -> Exchange:
            burn(0.1)
            exchange = super().exchange(request, timeout_s)
            burn(0.3)
            return exchange

    shard = a_shard([0], concurrency=concurrency, end_ns=300 * MS)
    run, _ = play(shard, Straggler(0.4))
    assert 0.1 <= run.cpu_s < 0.3
    assert run.t_end_ns > 600 * MS


def burn(cpu_s: float) -> None:
    until_s = time.process_time() + cpu_s
    while time.process_time() < until_s:
        pass


def test_the_alarm_rings_on_time_and_lets_others_run():
    alarm = Alarm()
    turns = []
    other = gevent.spawn(lambda: turns.append(gevent.sleep(0.001)))
    due_ns = time.monotonic_ns() + 20 * MS
    alarm.sleep_until(due_ns)
    assert 0 <= time.monotonic_ns() - due_ns < 15 * MS
    assert turns == [None]
    alarm.sleep_until(due_ns)  # past: at once
    assert time.monotonic_ns() - due_ns < 30 * MS
    other.join()
    alarm.close()
