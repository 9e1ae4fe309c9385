import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from loadtests.drive.sse import read_stream
from serve_app.engines.fake_wire import Answer, StreamChunks, StreamOptions


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(**fields: object) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def vllm_stream(n_tokens: int = 4) -> list[bytes]:
    answer = Answer("chat", "id", 1, "m", 3, n_tokens, "stop", 0)
    chunks = StreamChunks(answer, StreamOptions(include_usage=True))
    tokens = [chunks.token(i) for i in range(n_tokens)]
    return [*chunks.opening(), *tokens, *chunks.closing()]


def test_only_events_with_tokens_move_the_clock():
    stream = vllm_stream(3)
    reading = read_stream([(10 * i, data) for i, data in enumerate(stream)])
    assert reading.token_ns == [10, 20, 30]  # not the role at 0, nor the end at 40 and later
    assert "".join(reading.text) == " alpha bravo charlie"
    assert (reading.prompt_tokens, reading.output_tokens) == (3, 3)
    assert reading.finish_reason == "stop"
    assert reading.is_done and reading.is_complete
    assert reading.error is None and reading.malformed is None


@given(st.data())
def test_how_the_bytes_were_cut_changes_no_content(data):
    raw = b"".join(vllm_stream())
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=40)))
    bounds = [0, *cuts, len(raw)]
    pieces = [(b, raw[a:b]) for a, b in itertools.pairwise(bounds)]
    reading = read_stream(pieces)
    whole = read_stream([(len(raw), raw)])
    assert reading.text == whole.text
    assert reading.output_tokens == whole.output_tokens
    assert reading.is_done
    ends = [raw.index(b"\n", raw.index(word)) + 1 for word in (b" alpha", b" delta")]
    first_pieces = [next(bound for bound in bounds if bound >= end) for end in ends]
    assert [reading.token_ns[0], reading.token_ns[-1]] == first_pieces


def test_reasoning_and_tools_count_as_tokens_but_empty_text_does_not():
    stream = [
        delta(role="assistant", content=""),
        delta(reasoning="hm"),
        delta(reasoning_content="hm"),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        delta(content=""),
        delta(content=None, tool_calls=[]),
    ]
    reading = read_stream([(i, data) for i, data in enumerate(stream)])
    assert reading.token_ns == [1, 2, 3]


def test_completion_events_have_text():
    reading = read_stream(
        [(7, event(choices=[{"index": 0, "text": "hi", "finish_reason": "stop"}]))]
    )
    assert reading.token_ns == [7] and reading.text == ["hi"]


def test_a_stream_without_its_end_is_not_complete():
    stream = vllm_stream()
    for kept in range(len(stream) - 2):
        assert not read_stream([(0, b"".join(stream[:kept]))]).is_complete
    assert read_stream([(0, b"".join(stream[:-1]))]).is_complete  # finish_reason and usage


def test_errors_inside_the_stream_and_nonsense_are_kept():
    reading = read_stream(
        [(0, event(error={"message": "boom", "code": 500})), (1, b"data: {oops\n\n")]
    )
    assert "boom" in reading.error
    assert reading.malformed
    assert read_stream([(0, b": comment\r\n\r\ndata: [DONE]\r\n\r\n")]).is_done


def test_several_events_in_a_piece_share_its_stamp_and_a_split_event_has_the_later_one():
    one = delta(content="a")
    reading = read_stream([(1, one + one + one[:9]), (2, one[9:-2]), (3, one[-2:] + one[:-1])])
    assert reading.token_ns == [1, 1, 3, 3]
    assert reading.text == ["a"] * 4


def test_crlf_comments_and_other_fields_are_no_events():
    raw = b": ping\r\n\r\nevent: message\r\nid: 7\r\nretry: 10\r\n\r\ndata:\r\n\r\n"
    raw += delta(content="a").replace(b"\n", b"\r\n") + b"data:[DONE]\r\n\r\n"
    reading = read_stream([(5, raw)])
    assert (reading.token_ns, reading.text) == ([5], ["a"])
    assert reading.is_done and reading.malformed is None


@given(st.text(min_size=1), st.booleans())
def test_any_text_is_read_as_it_was_meant(text, is_ascii):
    fields = {"choices": [{"index": 0, "delta": {"content": text}}]}
    raw = b"data: " + json.dumps(fields, ensure_ascii=is_ascii).encode("utf-8", "replace") + b"\n\n"
    reading = read_stream([(1, raw), (2, b"data: [DONE]\n\n")])
    assert reading.token_ns == [1]
    assert reading.is_done and reading.malformed is None
    assert reading.text == [json.loads(raw[6:])["choices"][0]["delta"]["content"]]


def test_words_of_the_protocol_inside_a_text_are_text():
    text = '"content":"" data: [DONE] {"usage":{"completion_tokens":9}}\n\ndata: [DONE]\n\n'
    reading = read_stream([(1, delta(content=text))])
    assert reading.text == [text]
    assert not reading.is_complete and reading.output_tokens is None


def test_an_event_is_one_stamp_however_many_choices_and_tokens_it_has():
    choice = {"delta": {"content": "some tokens at once", "reasoning": "hm"}}
    reading = read_stream([(4, event(choices=[choice, choice]))])
    assert reading.token_ns == [4]


def test_usage_that_comes_with_every_event_ends_as_the_last_one():
    counts = [{"prompt_tokens": 9, "completion_tokens": n} for n in (1, 2)]
    stream = [event(choices=[{"delta": {"content": "a"}}], usage=usage) for usage in counts]
    reading = read_stream([*enumerate(stream), (9, event(choices=None, usage=None))])
    assert (reading.prompt_tokens, reading.output_tokens) == (9, 2)
    assert reading.token_ns == [0, 1]
    assert not reading.is_complete  # usage alone is no end


def test_what_follows_nonsense_is_still_read():
    bad = [
        b"data: 7\n\n",
        b'data: {"choices":[{"delta":{"content":5}}]}\n\n',
        b"data: \xff\n\n",
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":' + b"[" * 9999 + b"\n\n",
        b'data: {"usage":{"completion_tokens":18446744073709551616}}\n\n',
        b'data: {"usage":{"completion_tokens":-1}}\n\n',
    ]
    for nonsense in bad:
        reading = read_stream([(0, nonsense), (1, delta(content="a")), (2, b"data: [DONE]\n")])
        assert reading.malformed and reading.is_done
        assert reading.output_tokens is None
        assert reading.token_ns == [1]
