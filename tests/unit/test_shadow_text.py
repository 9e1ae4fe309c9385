"""What answers of the OpenAI API say, whole and as streams."""

import json

import pytest

from serve_app.engines.fake_wire import Answer, StreamChunks, StreamOptions, full_body
from serve_app.routing.agreement import Reading
from serve_app.serving.shadow_text import (
    EVENTS_PER_BREATH,
    ErrorInStreamError,
    UnreadableAnswerError,
    read_answer,
)


def stream(*events: object, newline: str = "\n") -> bytes:
    lines = [f"data: {each if isinstance(each, str) else json.dumps(each)}" for each in events]
    return "".join(f"{line}{newline}{newline}" for line in [*lines, "data: [DONE]"]).encode()


def chat(finish_reason: str | None = None, index: int = 0, **delta: object) -> dict:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def whole(*messages: dict, **more: object) -> bytes:
    choices = [{"message": each, "finish_reason": "stop"} for each in messages]
    return json.dumps({"choices": choices, **more}).encode()


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_vllms_stream_and_whole_answer_say_the_same(kind):
    answer = Answer(kind, "r", 0, "m", 5, 40, "length", seed=3)
    chunks = StreamChunks(answer, StreamOptions(include_usage=True))
    events = [*chunks.opening(), *map(chunks.token, range(40)), *chunks.closing()]
    expected = Reading(answer.text(), "length", None, 40)
    assert read_answer(b"".join(events)) == expected
    assert read_answer(full_body(answer)) == expected


def test_content_comes_in_pieces_between_empty_ones():
    body = stream(chat(role="assistant", content=""), chat(content="a "), chat(content="b"))
    assert read_answer(body).text == "a b"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("before", [b"", b": keep-alive\n\n", b"event: x\n", b"id: 1\n"])
def test_any_stream_of_events(newline, before):
    body = before + stream(chat(content="a"), chat("stop", content="b"), newline=newline)
    assert read_answer(body) == Reading("ab", "stop")


def test_a_stream_without_its_end_mark_is_read_as_far_as_it_goes():
    body = stream(chat(content="a")).removesuffix(b"data: [DONE]\n\n").rstrip()
    assert read_answer(body) == Reading("a")


def test_reasoning_comes_before_the_content():
    body = stream(chat(reasoning="hm "), chat(reasoning_content="ok"), chat(content="yes"))
    assert read_answer(body).text == "hm ok\nyes"
    message = {"content": "yes", "reasoning": "hm ok"}
    assert read_answer(whole(message)).text == "hm ok\nyes"


def test_tool_calls_are_text_and_their_random_ids_are_not():
    def call(place: int | None, name: str | None, arguments: str, **more: object) -> dict:
        index = {} if place is None else {"index": place}
        return {**index, "function": {"name": name, "arguments": arguments}, **more}

    streamed = stream(
        chat(tool_calls=[call(0, "add", "", id="call-1")]),
        chat(tool_calls=[call(0, None, '{"a": ')]),
        chat(tool_calls=[call(0, None, "1}")]),
        chat("tool_calls", tool_calls=[call(1, "mul", "{}", id="call-2")]),
    )
    at_once = whole(
        {"content": None, "tool_calls": [call(None, "add", '{"a": 1}'), call(None, "mul", "{}")]}
    )
    assert read_answer(streamed).text == 'add({"a": 1})\nmul({})'
    assert read_answer(at_once).text == read_answer(streamed).text


def test_choices_are_in_the_order_of_their_index():
    body = stream(chat("stop", 1, content="b"), chat("length", 0, content="a"))
    assert read_answer(body) == Reading("a\nb", "length,stop")
    assert read_answer(stream(chat(None, 1, content="b"), chat("stop", 0, content="a"))) == (
        Reading("a\nb", None)
    )


def test_token_ids_count_only_when_they_cover_the_text():
    told = {"choices": [{"delta": {"content": "a"}, "token_ids": [7, 8]}]}
    untold = {"choices": [{"delta": {"content": "b"}, "token_ids": None}]}
    opening = chat(role="assistant", content="")
    assert read_answer(stream(opening, told, told)).token_ids == (7, 8, 7, 8)
    assert read_answer(stream(opening, told, untold)).token_ids is None
    body = {"choices": [{"text": "a", "token_ids": [1]}, {"text": "b", "token_ids": [2, 3]}]}
    assert read_answer(json.dumps(body).encode()).token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": "a"}',
        b'{"choices": [{"text": 1}]}',
        b"data: [DONE]\n\n",
        b"data: {\n\n",
        b"data: \xff\n\n",
        b"[" * 100_000,
        b'{"data": [{"embedding": [1.0]}]}',
    ],
)
def test_what_is_no_answer_is_unreadable(body):
    with pytest.raises(UnreadableAnswerError):
        read_answer(body)


def test_an_error_inside_of_a_stream():
    body = stream(chat(content="a"), {"error": {"message": "CUDA out of memory"}})
    with pytest.raises(ErrorInStreamError, match="out of memory"):
        read_answer(body)


def test_a_long_stream_is_read_with_breaths():
    breaths: list[None] = []
    events = [chat(content="a ")] * (10 * EVENTS_PER_BREATH)
    read_answer(stream(*events), lambda: breaths.append(None))
    assert len(breaths) == 10
