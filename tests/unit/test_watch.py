"""What is read off an answer as it passes."""

import pytest

from serve_app.serving.watch import Usage, Watch

USAGE = b'"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}'
STREAM = [
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n',
    b'data: {"choices":[],' + USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
]


def watched(pieces, times):
    ticks = iter(times)
    watch = Watch(lambda: next(ticks))
    for piece in pieces:
        watch.piece(piece)
    return watch


@pytest.mark.parametrize(
    ("pieces", "usage"),
    [
        (STREAM, Usage(7, 5)),
        ([b"".join(STREAM)], Usage(7, 5)),
        ([STREAM[0], STREAM[1][:40], STREAM[1][40:] + STREAM[2]], Usage(7, 5)),
        ([b'{"choices":[],"usage":{"input_tokens": 3, "output_tokens": 2}}'], Usage(3, 2)),
        (STREAM[:1], Usage(None, None)),
        ([], Usage(None, None)),
        ([b"x" * 10_000 + b"{" + USAGE + b"}"], Usage(7, 5)),
        # a model that writes JSON: its own words are quoted inside a string
        ([b'{"content":"{\\"completion_tokens\\": 99}"}', b"{" + USAGE + b"}"], Usage(7, 5)),
    ],
)
def test_usage_is_what_the_end_of_the_answer_says(pieces, usage):
    assert watched(pieces, [0.0] * 10).usage() == usage


def test_times_run_from_the_arrival_to_the_first_and_the_last_byte():
    seen = watched(STREAM, [10.0, 10.5, 12.5]).observation("a", 200, whole=True, streams=True)
    assert (seen.ttft_s, seen.duration_s, seen.completion_tokens) == (0.5, 2.5, 5)
    assert seen.tpot_s == pytest.approx(0.5)


def test_a_stream_without_a_byte_has_no_first_token():
    seen = watched([], [10.0, 11.0]).observation("a", 200, whole=False, streams=True)
    assert (seen.ttft_s, seen.duration_s, seen.tpot_s, seen.whole) == (None, 1.0, None, False)


def test_an_answer_that_is_no_stream_has_neither_a_ttft_nor_a_time_per_token():
    pieces = [b'{"choices":[],', USAGE + b"}"]
    seen = watched(pieces, [10.0, 12.0, 12.01]).observation("a", 200, whole=True, streams=False)
    assert (seen.ttft_s, seen.tpot_s) == (None, None)
    assert (seen.duration_s, seen.completion_tokens) == (pytest.approx(2.01), 5)


def test_a_tap_sees_the_very_pieces():
    taken = []
    watch = Watch(lambda: 0.0)
    watch.tap(taken.append)
    watch.piece(STREAM[0])
    assert taken == [STREAM[0]] and taken[0] is STREAM[0]
