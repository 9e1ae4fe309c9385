import msgspec
import pytest

from loadtests.bench.drive import Driven
from loadtests.bench.mock_wire import Wire
from loadtests.bench.pacer import pace_of
from loadtests.bench.sse import gaps_us
from loadtests.drive.sse import read_stream
from loadtests.records.record import CellRun, ErrorClass, RequestRecord

MS = 1_000_000


def record(index: int, lag_ms: float | None, error: ErrorClass | None = None) -> RequestRecord:
    sched_ns = index * 10 * MS
    return RequestRecord(
        cell=0,
        index=index,
        phase="measured",
        variant="a",
        t_sched_ns=sched_ns,
        t_send_ns=None if lag_ms is None else sched_ns + round(lag_ms * MS),
        error=error,
        max_tokens=64,
    )


def pace(records: list[RequestRecord]):
    run = CellRun(
        cell=0,
        worker=0,
        n_records=len(records),
        t_end_ns=2000 * MS,
        cpu_s=0.5,
        in_flight_ns=0,
        peak_in_flight=1,
    )
    return pace_of(Driven(records, [run]), duration_s=1)


def test_a_plan_that_was_kept():
    kept = pace([record(i, i / 10) for i in range(100)])
    assert (kept.lag_p50_ms, kept.lag_p99_ms, kept.lag_max_ms) == pytest.approx((4.9, 9.8, 9.9))
    assert kept.achieved_per_s == 100
    assert kept.offered_per_s == 100
    assert kept.cpu_share == 0.5  # of the second in which requests were due
    assert kept.reasons() == []


def test_a_late_load_says_so():
    late = pace([record(i, 11.0 if i >= 98 else 1.0) for i in range(100)])
    assert late.lag_p99_ms == pytest.approx(11)
    assert late.reasons() == ["lag P99 11.0 ms, need at most 10"]
    one_late = pace([record(i, 11.0 if i == 99 else 1.0) for i in range(100)])
    assert one_late.reasons() == []


def test_what_was_not_sent_is_late_and_what_failed_was_not_achieved():
    refused = [record(i, None, ErrorClass.REFUSED_BY_CLIENT) for i in range(98, 100)]
    unsent = pace([record(i, 1.0) for i in range(98)] + refused)
    assert unsent.lag_p99_ms == float("inf")
    assert len(unsent.reasons()) == 2
    failed = pace([record(i, 1.0, ErrorClass.CLOSED if i < 2 else None) for i in range(100)])
    assert failed.reasons() == ["98.0 of 100 requests/s, need 99%"]


def test_the_mock_says_what_an_engine_says():
    wire = Wire()
    assert len(wire.token(0)) == pytest.approx(260, abs=15)
    head, _, role = wire.opening("a").partition(b"\r\n\r\n")
    assert b"x-variant: a" in head
    pieces = [role, *(wire.token(i) for i in range(3)), wire.closing(3, with_usage=True)]
    reading = read_stream(list(enumerate(pieces)))  # chunk sizes are no fields of SSE
    assert reading.token_ns == [1, 2, 3]
    assert (reading.output_tokens, reading.finish_reason, reading.is_done) == (3, "length", True)
    assert read_stream([(0, wire.closing(3, with_usage=False))]).output_tokens is None


def test_gaps_are_between_neighbours():
    assert gaps_us(msgspec.structs.replace(record(0, 0), event_us=(0, 5, 25))) == [5, 20]
    assert gaps_us(record(0, 0)) == []
