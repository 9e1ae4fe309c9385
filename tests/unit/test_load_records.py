"""Which error a record names, and records in their file."""

from pathlib import Path

import pytest

from loadtests.drive.client import Exchange
from loadtests.drive.outcome import Arrival
from loadtests.records.record import ErrorClass, JsonlWriter, RequestRecord, read_lines
from tests.fakes.load_cells import failed_of, record_of

ARRIVAL = Arrival(
    cell=0, index=0, worker=0, variant="a", phase="measured", t_sched_ns=0, max_tokens=4
)


TOKEN = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
NO_COUNT = b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def error_of(exchange):
    return ARRIVAL.record(exchange, start_ns=0).error


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
        (Exchange(0, status=200, pieces=[(1, TOKEN + DONE)]), ErrorClass.NO_USAGE),
        (Exchange(0, status=200, pieces=[(1, TOKEN + NO_COUNT + DONE)]), ErrorClass.NO_USAGE),
        (Exchange(0, status=200, pieces=[(1, USAGE + DONE)]), ErrorClass.EMPTY),
        (Exchange(0, status=200, pieces=[(1, TOKEN + USAGE + DONE)]), None),
        (
            Exchange(0, status=200, pieces=[(1, b'data: {"error":"x"}\n\n')]),
            ErrorClass.STREAM_ERROR,
        ),
    ],
)
def test_every_way_to_fail_has_its_class(exchange, error):
    assert error_of(exchange) == error


def test_an_answer_of_another_variant_is_a_failure():
    pieces = [(1, TOKEN), (2, USAGE), (3, DONE)]
    for served, error in (("a", None), ("b", ErrorClass.WRONG_VARIANT), (None, None)):
        headers = {} if served is None else {"x-variant": served}
        assert error_of(Exchange(0, status=200, pieces=pieces, headers=headers)) == error


def test_records_survive_the_file_and_a_cut_last_line(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    writer = JsonlWriter(path)
    records = [record_of(1), failed_of(2, ErrorClass.TIMEOUT)]
    for each in records:
        writer.write(each)
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"cell":0,"ind')
    assert list(read_lines(path, RequestRecord)) == records
