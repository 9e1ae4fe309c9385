"""The drill's bookkeeping: what became of a request, and the table of phases."""

import json

import pytest

from tests.fakes.drill import SILENT_AFTER_S, Fate, Sent, fate, fell_silent, rows, table

DONE = b"data: [DONE]\n\n"


def delta(content: str | None) -> bytes:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


ERROR = {"error": {"message": "m", "type": "server_error", "param": None, "code": "stream_broken"}}
EVENT = b"data: " + json.dumps(ERROR).encode() + b"\n\n"
TWO = delta("") + delta(" a") + delta(" b") + delta(None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (TWO + DONE, Fate.OK),
        (TWO, Fate.FAILED),
        (delta("") + delta(" a") + DONE, Fate.FAILED),
        (delta(" a") + EVENT, Fate.BROKEN),
        (delta(" a") + b'data: {"error": "no"}\n\n', Fate.FAILED),
        (delta(" a") + b"data: {half", Fate.FAILED),
        (b"", Fate.FAILED),
    ],
)
def test_a_stream_is_whole_ends_in_an_error_event_or_failed(body, expected):
    found, detail = fate(200, body, True, 2)
    assert found is expected
    assert bool(detail) is (expected is not Fate.OK)


def test_an_answer_that_is_no_stream_has_all_its_tokens():
    assert fate(200, b'{"usage": {"completion_tokens": 2}}', False, 2)[0] is Fate.OK
    assert fate(200, b'{"usage": {"completion_tokens": 1}}', False, 2)[0] is Fate.FAILED
    assert fate(200, b"{", False, 2)[0] is Fate.FAILED
    assert fate(503, b"{}", True, 2)[0] is Fate.FAILED


FROZEN_S, KILLED_S = 100.0, 101.0


@pytest.mark.parametrize(
    ("what", "changes", "expected"),
    [
        ("it ended with the process", {}, True),
        ("its last bytes were on their way", {"last_s": FROZEN_S + 0.9 * SILENT_AFTER_S}, True),
        ("another process went on with it", {"last_s": FROZEN_S + 1.1 * SILENT_AFTER_S}, False),
        ("it had not begun", {"first_s": None, "last_s": None}, False),
        ("it was sent to whoever was left", {"sent_s": FROZEN_S + 0.01}, False),
        ("it failed before", {"end_s": KILLED_S - 0.1}, False),
        ("it was no stream", {"streams": False}, False),
    ],
)
def test_the_streams_of_a_process_are_those_that_fall_silent_while_it_is_frozen(
    what, changes, expected
):
    facts = {"sent_s": 99.8, "streams": True, "first_s": 99.9, "last_s": 99.99, "end_s": 101.01}
    assert fell_silent(Sent("p", **{**facts, **changes}), FROZEN_S, KILLED_S) is expected, what


def test_a_row_for_each_phase():
    def sent(phase: str, ms: float | None, fate: Fate = Fate.OK, **more) -> Sent:
        first_s = None if ms is None else 10 + ms / 1000
        return Sent(phase, 10.0, True, fate, first_s=first_s, **more)

    requests = [
        *(sent("one", ms) for ms in (10.0, 20.0, 30.0, 40.0)),
        sent("one", 5000.0, Fate.BROKEN),
        sent("two", None, Fate.FAILED),
        sent("two", 7.0, reason="fallback"),
    ]
    one, two, three = rows(requests, ["one", "two", "three"])
    assert (one.sent, one.ok, one.broken, one.failed, one.fell_back) == (5, 4, 1, 0, 0)
    assert one.ttft_p50_ms == pytest.approx(20)
    assert one.ttft_p99_ms == pytest.approx(40)
    assert (two.failed, two.fell_back) == (1, 1)
    assert (three.sent, three.ttft_p50_ms) == (0, None)
    one.counted = {"retried": 3.0}
    lines = [" ".join(line.split()) for line in table([one, three], ["retried"]).splitlines()]
    assert lines[1:] == ["one 5 4 1 0 0 20 ms 40 ms 3", "three 0 0 0 0 0 - - nan"]
