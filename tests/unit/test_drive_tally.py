"""What workers report, and what the run makes of it."""

import msgspec
import pytest

from loadtests.drive.messages import Report
from loadtests.drive.outbox import Outbox
from loadtests.drive.tally import LAST_TTFTS, Tally
from loadtests.records.record import ErrorClass, RequestRecord
from tests.fakes.load_cell import a_cell


def a_record(error: ErrorClass | None = None, ttft_ms: float | None = None) -> RequestRecord:
    return RequestRecord(
        cell=0,
        index=0,
        phase="measured",
        variant="a",
        t_sched_ns=1_000_000,
        t_first_ns=None if ttft_ms is None else round((1 + ttft_ms) * 1e6),
        error=error,
        max_tokens=1,
    )


def reported(*errors: ErrorClass | None, in_flight: int = 0) -> Report:
    outbox = Outbox(lambda record: None)
    for error in errors:
        outbox.add(a_record(error))
    return outbox.report(in_flight)


def test_a_report_holds_what_came_since_the_last_one():
    seen = []
    outbox = Outbox(seen.append)
    records = [a_record(ttft_ms=20), a_record(ErrorClass.TRUNCATED, ttft_ms=30), a_record()]
    for record in records:
        outbox.add(record)
    report = outbox.report(4)
    assert seen == records
    assert msgspec.json.Decoder(RequestRecord).decode_lines(report.lines) == records
    assert report.lines.endswith(b"\n")
    assert (report.n_over, report.n_failed, report.in_flight) == (3, 1, 4)
    assert report.ttft_ms == (20.0,)  # on the user's clock, of those that succeeded
    assert outbox.report(1) == Report(
        lines=b"",
        n_over=0,
        n_failed=0,
        in_flight=1,
        found_server=False,
        n_unreached=0,
        ttft_ms=(),
    )


NO, CLOSED, TIMEOUT = ErrorClass.CONNECT, ErrorClass.CLOSED, ErrorClass.TIMEOUT
REFUSED = ErrorClass.REFUSED_BY_CLIENT


@pytest.mark.parametrize(
    ("reports", "in_a_row"),
    [
        ([(NO, CLOSED)], 2),
        ([(NO, NO, None, NO)], 1),
        ([(NO, NO), (NO,)], 3),
        ([(NO, NO), (), (NO,)], 3),  # nothing was tried
        ([(NO, NO), (REFUSED, ErrorClass.UNFINISHED), (NO,)], 3),  # nor was it here
        ([(NO, NO), (TIMEOUT,), (NO,)], 1),  # whoever is late was reached
        ([(NO, NO), (ErrorClass.UNAVAILABLE, NO)], 1),
        ([(NO, NO), (None,)], 0),
    ],
)
def test_requests_that_found_no_server_are_counted_in_a_row(reports, in_a_row):
    tally = Tally(2, None)
    for number, errors in enumerate(reports):
        now = tally.take(f"worker {number % 2}", reported(*errors))
    assert now == in_a_row


def test_progress_adds_up_the_workers_and_begins_anew_with_each_cell():
    tally = Tally(2, 8)
    assert tally.progress(5).phase == "waiting for workers"
    tally.phase = "running"
    tally.begin(a_cell(9))
    tally.take("one", reported(None, NO, in_flight=3))
    tally.take("two", reported(None, in_flight=4))
    tally.take("one", reported(in_flight=1))
    tally.cells_done = 1
    tally.begin(a_cell(9))
    tally.take("two", reported(None, in_flight=4))
    now = tally.progress(7)
    assert (now.t_ns, now.n_workers, now.n_cells, now.cells_done) == (7, 2, 8, 1)
    assert (now.cell_over, now.cell_planned, now.over, now.failed) == (1, 9, 4, 1)
    assert now.in_flight == 5
    assert (now.stage, now.block, now.variant, now.rate_per_s) == ("s", 1, "a", 1.5)
    assert now.ttft_ms is None


def test_a_closed_loop_plans_no_number():
    tally = Tally(1, None)
    tally.begin(a_cell(9, concurrency=3))
    now = tally.progress(0)
    assert (now.concurrency, now.cell_planned, now.rate_per_s) == (3, 0, None)


def test_the_live_percentiles_are_nearest_ranks_of_the_last_answers():
    tally = Tally(1, None)
    outbox = Outbox(lambda record: None)
    for ttft_ms in [1e6, *range(1, LAST_TTFTS + 1)]:
        outbox.add(a_record(ttft_ms=ttft_ms))
    tally.take("one", outbox.report(0))
    assert tally.progress(0).ttft_ms == (100.0, 190.0)
