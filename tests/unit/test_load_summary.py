"""The definitions of section "summary", on records written by hand."""

import math
from pathlib import Path

import msgspec
import pytest

from loadtests.campaign import parse_campaign
from loadtests.drive.client import Exchange
from loadtests.drive.outcome import Arrival
from loadtests.records.record import CellRun, ErrorClass, JsonlWriter, RequestRecord, read_records
from loadtests.report.rows import cells_of, number, with_interval
from loadtests.plan.cells import PlannedRequest, plan_cells
from loadtests.analyse.stats import Quantile
from loadtests.analyse.summary import METRICS, meets, summarize
from serve_app.domain.units import NS_PER_S

MS = 1_000_000
CAMPAIGN = parse_campaign(
    {
        "target": {"model": "m", "variants": ["a"]},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
        "stages": [{"name": "s", "kind": "constant", "rate_per_s": 10, "duration_s": 2}],
        "warmup_s": 1,
        "cooldown_s": 1,
        "slo": {"ttft_ms": 60, "tpot_ms": 20},
    },
    "test",
)
CELLS = plan_cells(CAMPAIGN, 10)


def record(index: int = 0, **changes: object) -> RequestRecord:
    """Sent 2 ms late, first token 50 ms after the plan, then 3 tokens 10 ms apart."""
    t = index * 100 * MS
    fields = {
        "cell": 0,
        "index": index,
        "phase": CELLS[0].requests[index].phase,
        "variant": "a",
        "t_sched_ns": t,
        "t_send_ns": t + 2 * MS,
        "t_first_ns": t + 50 * MS,
        "t_last_ns": t + 80 * MS,
        "t_end_ns": t + 81 * MS,
        "event_us": (0, 10_000, 20_000, 30_000),
        "status": 200,
        "max_tokens": 4,
        "output_tokens": 4,
    }
    return RequestRecord(**(fields | changes))


def run(records: list[RequestRecord], **changes: object) -> CellRun:
    stays = sum(r.t_end_ns - r.t_send_ns for r in records if r.t_send_ns is not None)
    fields = {
        "cell": 0,
        "t_start_ns": 0,
        "t_end_ns": 4 * NS_PER_S,
        "cpu_s": 0.4,
        "in_flight_ns": stays,
        "peak_in_flight": 1,
    }
    return CellRun(**(fields | changes))


def failed(index: int, error: ErrorClass, **changes: object) -> RequestRecord:
    unset = dict.fromkeys(("t_first_ns", "t_last_ns", "output_tokens"))
    return record(index, error=error, event_us=(), **(unset | changes))


def test_metrics_of_one_request():
    values = {name: metric(record()) for name, metric in METRICS.items()}
    assert values == {
        "ttft_user_ms": 50,
        "ttft_service_ms": 48,
        "e2e_user_ms": 80,
        "e2e_service_ms": 78,
        "tpot_ms": 10,
        "stall_ms": 10,
        "lag_ms": 2,
    }


def test_tpot_and_stall_are_undefined_for_one_token():
    single = record(output_tokens=1, event_us=(0,))
    assert METRICS["tpot_ms"](single) is None
    assert METRICS["stall_ms"](single) is None
    assert METRICS["tpot_ms"](record(output_tokens=None)) is None


def test_slo_is_on_the_users_clock_and_failures_miss_it():
    slo = CAMPAIGN.slo
    assert meets(record(), slo)
    assert not meets(record(t_sched_ns=-20 * MS), slo)  # served in 48 ms, waited for 70
    assert not meets(failed(0, ErrorClass.TIMEOUT), slo)
    assert not meets(record(output_tokens=2), slo)  # TPOT 30 ms
    assert meets(record(output_tokens=1), slo)  # no TPOT to miss


def test_a_whole_cell():
    records = [record(i) for i in range(40)]
    (row,) = summarize(CAMPAIGN, CELLS, records, [run(records)])
    assert (row.n_planned, row.n_ok, row.errors) == (20, 20, {})
    assert row.window_s == 2
    assert row.offered_per_s == row.achieved_per_s == 10
    assert row.attainment == 1 and row.goodput_per_s == 10
    assert row.client_cpu_share == pytest.approx(0.1)
    assert row.little_gap == 0
    assert row.output_tokens_per_s == 40
    assert row.latencies["ttft_user_ms"].at(0.95).value == 50
    assert row.latencies["ttft_user_ms"].at(0.99).reason == "need n >= 100, have 20"
    assert row.is_valid


def test_tokens_count_where_they_arrive_not_where_they_were_asked():
    late = record(9, event_us=(0, 50_000, 60_000, 70_000))  # planned at 0.9 s, window from 1 s on
    (row,) = summarize(CAMPAIGN, CELLS, [late], [run([late])])
    assert row.output_tokens_per_s == 3 / 2
    bunched = record(9, event_us=(0, 60_000))  # two tokens per event
    (row,) = summarize(CAMPAIGN, CELLS, [bunched], [run([bunched])])
    assert row.output_tokens_per_s == 2 / 2


def test_failures_and_missing_records_are_infinite_and_out_of_the_slo():
    records = [record(i) for i in range(40) if i != 15]
    records[20] = failed(20, ErrorClass.TRUNCATED)
    (row,) = summarize(CAMPAIGN, CELLS, records, [run(records)])
    assert row.n_ok == 18
    assert row.errors == {"truncated": 1}
    assert row.attainment == 18 / 20
    aware = {q.p: q for q in row.latencies["e2e_user_ms"].with_failures}
    assert math.isinf(aware[0.95].value)
    assert row.latencies["e2e_user_ms"].at(0.5).value == 80
    assert msgspec.json.decode(msgspec.json.encode(aware[0.95]))["value"] is None
    assert not row.is_valid  # one request was never sent


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        (lambda i: record(i, t_send_ns=i * 100 * MS + 11 * MS), {}, "lag P95 11.0 ms > 10 ms"),
        (lambda i: record(i, t_send_ns=i * 100 * MS + 3 * MS), {}, "lag P95 3.0 ms > 5%"),
        (record, {"cpu_s": 3.0}, "client CPU 75%"),
        (record, {"in_flight_ns": 10**9}, "Little's law"),
        (
            lambda i: failed(i, ErrorClass.REFUSED_BY_CLIENT, t_send_ns=None, t_end_ns=None),
            {},
            "20 refused at in_flight_cap 128",
        ),
        (lambda i: failed(i, ErrorClass.HTTP_5XX), {}, "none of 20 requests succeeded"),
    ],
)
def test_a_client_in_the_way_makes_the_row_invalid(make, changes, reason):
    records = [make(i) for i in range(40)]
    (row,) = summarize(CAMPAIGN, CELLS, records, [run(records, **changes)])
    assert not row.is_valid
    assert any(reason in each for each in row.invalid_reasons), row.invalid_reasons


def test_unfinished_cells_do_not_count():
    assert summarize(CAMPAIGN, CELLS, [record()], []) == ()


def arrival() -> Arrival:
    return Arrival(0, 0, "a", 0, PlannedRequest(0, "measured", 0, 4))


@pytest.mark.parametrize(
    ("exchange", "error"),
    [
        (Exchange(0, status=429), ErrorClass.RATE_LIMITED),
        (Exchange(0, status=503), ErrorClass.UNAVAILABLE),
        (Exchange(0, status=404), ErrorClass.HTTP_4XX),
        (Exchange(0, status=500), ErrorClass.HTTP_5XX),
        (Exchange(0, error=ErrorClass.CONNECT), ErrorClass.CONNECT),
        (Exchange(0, status=200), ErrorClass.TRUNCATED),
        (Exchange(0, status=200, pieces=[(1, b"data: {no\n\n")]), ErrorClass.MALFORMED),
        (Exchange(0, status=200, pieces=[(1, b"data: [DONE]\n\n")]), ErrorClass.EMPTY),
        (
            Exchange(0, status=200, pieces=[(1, b'data: {"error":"x"}\n\n')]),
            ErrorClass.STREAM_ERROR,
        ),
    ],
)
def test_every_way_to_fail_has_its_class(exchange, error):
    assert arrival().record(exchange).error == error


def test_an_answer_of_another_variant_is_a_failure():
    pieces = [(1, b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n')]
    for served, error in (("a", None), ("b", ErrorClass.WRONG_VARIANT), (None, None)):
        headers = {} if served is None else {"x-variant": served}
        exchange = Exchange(0, status=200, pieces=pieces, headers=headers)
        assert arrival().record(exchange).error == error


def test_records_survive_the_file_and_a_cut_last_line(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    writer = JsonlWriter(path)
    records = [record(1), failed(2, ErrorClass.TIMEOUT)]
    for each in records:
        writer.write(each)
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"cell":0,"ind')
    assert list(read_records(path)) == records


def test_how_numbers_are_written():
    assert [number(v) for v in (None, math.inf, 0, 1.234, 12.34, 1234.5)] == [
        "-", "∞", "0", "1.23", "12.3", "1,234",
    ]  # fmt: skip
    assert with_interval(Quantile(0.5, 1.0, 9, low=0.5)) == "1.00 [0.50, …]"
    assert with_interval(Quantile(0.5, None, 0, reason="x")) == "-"


def test_a_row_has_a_cell_per_header():
    from loadtests.report.rows import HEADERS

    records = [record(i) for i in range(40)]
    (row,) = summarize(CAMPAIGN, CELLS, records, [run(records)])
    assert len(cells_of(row)) == len(HEADERS)
