"""Whole events only, and the event that ends a stream in an error."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.serving.sse import MAX_HELD_BYTES, WholeEvents, error_event, is_stream

EVENT = b'data: {"id": 1}\n\n'


def test_a_piece_of_whole_events_passes_uncopied():
    events, piece = WholeEvents(), EVENT * 2
    assert events.take(piece) is piece
    assert (events.last, events.rest(), events.fresh_line()) == (piece, b"", b"")


def test_half_an_event_waits_for_the_other_half():
    events = WholeEvents()
    assert events.take(EVENT + b"data: {") == EVENT
    assert events.take(b'"id": 2}') == b""
    assert events.take(b"\n") == b""
    assert events.take(b"\ndata: 3") == b'data: {"id": 2}\n\n'
    assert events.last == b'data: {"id": 2}\n\n'
    assert events.rest() == b"data: 3"
    assert events.rest() == b""


def test_half_an_event_is_gone_when_the_stream_breaks():
    events = WholeEvents()
    assert events.take(EVENT + b'data: {"id') == EVENT
    assert events.fresh_line() == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_events_end_at_an_empty_line_of_any_kind(end):
    events = WholeEvents()
    assert events.take(b"data: 1" + end + b"data: 2") == b"data: 1" + end
    assert events.take(end) == b"data: 2" + end


def test_an_event_without_an_end_is_not_kept_for_ever():
    events, piece = WholeEvents(), b"x" * (MAX_HELD_BYTES // 2)
    assert events.take(piece) == events.take(piece) == b""
    assert events.take(b"yy") == piece * 2 + b"yy"
    assert events.fresh_line() == b"\n\n"  # an event of ours would be a part of it
    assert events.take(b"z\n\n") == b"z\n\n"
    assert events.fresh_line() == b""


PIECES = st.lists(
    st.text(alphabet="ab\n\r", max_size=6).map(str.encode) | st.just(EVENT), max_size=30
)


@given(PIECES)
@example([b"a\r\n", b"\r\nb", b"\n", b"\n"])
def test_no_byte_is_lost_changed_or_late(pieces):
    events, passed = WholeEvents(), b""
    for index, piece in enumerate(pieces):
        whole = events.take(piece)
        assert not whole or whole.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        passed += whole
        came = b"".join(pieces[: index + 1])
        assert came.startswith(passed)
        held = came[len(passed) :]
        assert not any(end in held for end in (b"\n\n", b"\r\n\r\n", b"\r\r"))
    assert passed + events.rest() == b"".join(pieces)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", ""])
def test_chat_and_completions_end_in_an_error_object(path):
    event = error_event(path, "stream_broken", "why \n é", EVENT)
    assert event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2
    error = {"message": "why \n é", "type": "server_error", "param": None, "code": "stream_broken"}
    assert json.loads(event.removeprefix(b"data: ")) == {"error": error}


@pytest.mark.parametrize(
    ("last", "number"),
    [(b'data: {"sequence_number":6}\n\ndata: {"sequence_number": 7, "x": 1}\n\n', 8), (b"", 0)],
)
def test_the_responses_api_has_an_event_of_its_own_numbered_like_the_others(last, number):
    event = error_event("/v1/responses", "stream_broken", "why", last)
    name, data = event.removesuffix(b"\n\n").split(b"\n")
    assert name == b"event: error"
    told = json.loads(data.removeprefix(b"data: "))
    assert (told["type"], told["code"], told["message"]) == ("error", "stream_broken", "why")
    assert (told["param"], told["sequence_number"]) == (None, number)
    assert told["error"]["code"] == "stream_broken"  # for OpenAI's client, which raises for it


@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        ("text/event-stream", True),
        ("text/event-stream; charset=utf-8", True),
        ("Text/Event-Stream", True),
        ("application/json", False),
        (None, False),
    ],
)
def test_what_is_a_stream(kind, stream):
    assert is_stream(kind) is stream
