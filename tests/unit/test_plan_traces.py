import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.campaign.stages import TraceFormat, TraceStage
from loadtests.plan.prompts import PromptBook
from loadtests.plan.replay import parts_of, take_excerpt
from loadtests.plan.request import PlannedRequest, Turn
from loadtests.plan.traces import TraceRow, read_trace
from serve_app.domain.errors import ConfigError

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8\r\n"
    "2023-11-17 18:17:03.9799600,110,27"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01+00:00,2399,6\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,Conversation log\n"
    "118,GPT-4,417,276,693,API log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n"
    "19440161.5,,2,ChatGPT,36,29,65,API log\n"
)


def rows(path, kind, text):
    path.write_text(text, newline="")
    return list(read_trace(TraceFormat(kind), path))


def mooncake(*lines: tuple[int, int, int, list[int]]) -> str:
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    return "".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines)


def stage(path, kind="mooncake", **fields):
    raw = {"name": "t", "kind": "trace", "format": kind, "path": str(path), "duration_s": 1.0}
    return TraceStage.model_validate_json(json.dumps(raw | fields))


def test_azure_of_2023_has_seven_digits_and_no_zone(tmp_path):
    made = rows(tmp_path / "t.csv", "azure", AZURE_2023)
    assert [(row.input_tokens, row.output_tokens) for row in made] == [
        (4808, 10),
        (3180, 8),
        (110, 27),
    ]
    assert [row.at_s for row in made] == pytest.approx([0, 0.052, 86_400], abs=1e-6)


def test_azure_of_2024_has_a_zone_and_whole_seconds(tmp_path):
    made = rows(tmp_path / "t.csv", "azure", AZURE_2024)
    assert [row.at_s for row in made] == pytest.approx([0, 0.99007], abs=1e-6)


def test_azure_without_a_zone_knows_no_daylight_saving(tmp_path, monkeypatch):
    import time

    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    text += "2023-10-29 00:30:00.0,1,1\n2023-10-29 04:30:00.0,1,1\n"
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert rows(tmp_path / "t.csv", "azure", text)[1].at_s == 4 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_burstgpt_counts_from_its_first_request(tmp_path):
    assert rows(tmp_path / "t.csv", "burstgpt", BURSTGPT) == [
        TraceRow(0.0, 472, 18),
        TraceRow(40.0, 1087, 0),
        TraceRow(113.0, 417, 276),
    ]


def test_burstgpt_of_the_third_file_has_sessions(tmp_path):
    assert rows(tmp_path / "t.csv", "burstgpt", BURSTGPT_3) == [
        TraceRow(0.0, 906, 446, session="1722ac82"),
        TraceRow(51.5, 36, 29),
    ]


def test_mooncake_counts_in_milliseconds(tmp_path):
    text = mooncake((0, 1025, 500, [0, 1, 2]), (27482, 512, 3, [0])) + "\n"
    assert rows(tmp_path / "t.jsonl", "mooncake", text) == [
        TraceRow(0.0, 1025, 500, (0, 1, 2)),
        TraceRow(27.482, 512, 3, (0,)),
    ]


def test_a_byte_order_mark_and_blank_lines_are_nothing(tmp_path):
    text = "\ufeff" + AZURE_2024.replace("\n", "\n\n")
    assert len(rows(tmp_path / "t.csv", "azure", text)) == 2


def test_the_file_is_read_no_further_than_asked(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(mooncake((0, 1, 1, []), (5000, 1, 1, [])) + "not read\n")
    assert len(take_excerpt(stage(path), 5.0).rows) == 1


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:05,1,1\n"
SESSION = "Timestamp,Session ID,Request tokens,Response tokens\n1,{},1,1\n"
BURST_HEADER = BURSTGPT.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    ("kind", "text", "where"),
    [
        ("azure", "", ":1: need the columns TIMESTAMP, .* have none"),
        ("azure", BURSTGPT, ":1: need the columns TIMESTAMP, .* have Timestamp"),
        ("azure", HEADER + "noon,1,1\n", ":3: need"),
        ("azure", HEADER + "2024-05-10 00:00:06,1\n", ":3: need"),
        ("azure", HEADER + "2024-05-10 00:00:06,1,-1\n", ":3: need .*tokens, have -1"),
        ("azure", HEADER + "2024-05-10 00:00:06,1.5,1\n", ":3: need"),
        ("azure", HEADER + "2024-05-10 00:00:06,2000001,1\n", ":3: need .* 0 to 2,000,000 tokens"),
        ("azure", HEADER + '"' + "x" * 200_000 + '",1,1\n', ":3: need CSV.* field limit"),
        ("azure", "x" * 200_000 + "\n", ":1: need CSV.* field limit"),
        (
            "azure",
            HEADER + "\n2024-05-10 00:00:09,1,1\n2024-05-10 00:00:07,1,1\n",
            ":5: need .* 2 s before",
        ),
        ("burstgpt", HEADER, ":1: need the columns Timestamp"),
        ("burstgpt", BURST_HEADER + "nan,ChatGPT,1,1,2,API log\n", ":2: need .* no time"),
        ("burstgpt", BURST_HEADER + "inf,ChatGPT,1,1,2,API log\n", ":2: need .* no time"),
        ("burstgpt", SESSION.format("a\u00e9"), ":2: need .* session id of printable ASCII"),
        ("burstgpt", SESSION.format("a\x1b"), ":2: need .* session id of printable ASCII"),
        ("burstgpt", SESSION.format('"a\r\nX-Evil: 1"'), ":3: need .* session id of printable"),
        ("mooncake", mooncake((0, 1, 10**12, [])), ":1: need .* 0 to 2,000,000 tokens"),
        ("mooncake", mooncake((0, 513, 1, [0])), ":1: need .* 2 hash_ids"),
        ("mooncake", mooncake((0, 512, 1, [0, 1])), ":1: need .* 1 hash_ids"),
        ("mooncake", mooncake((0, -1, 1, [])), ":1: need .*tokens, have -1"),
        ("mooncake", mooncake((0, 1, -1, [])), ":1: need .*tokens, have -1"),
        ("mooncake", '{"timestamp": 0, "input_length": 4}\n', ":1: need .*output_length"),
        ("mooncake", mooncake((9, 1, 1, []), (8, 1, 1, [])), ":2: need .* in the order of time"),
        ("mooncake", "[]\n", ":1: need"),
    ],
)
def test_bad_lines_are_named(tmp_path, kind, text, where):
    with pytest.raises(ConfigError, match=f"trace{where}"):
        rows(tmp_path / "trace", kind, text)


def test_the_longest_prompt_that_a_model_takes_is_taken(tmp_path):
    (row,) = rows(tmp_path / "t", "mooncake", mooncake((0, 2_000_000, 1, [])))
    assert row.input_tokens == 2_000_000


def test_a_missing_or_binary_file_is_the_callers_fault(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_trace(TraceFormat.AZURE, path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_trace(TraceFormat.AZURE, path))


def test_an_excerpt_starts_where_asked_and_plays_as_fast_as_asked(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(mooncake(*((1000 * second, 10, 20 + second, []) for second in range(21))))
    excerpt = take_excerpt(stage(path, start_s=4, speedup=2), 3.0)
    assert [(row.at_s, row.output_tokens) for row in excerpt.rows] == [
        (0.0, 24),
        (0.5, 25),
        (1.0, 26),
        (1.5, 27),
        (2.0, 28),
        (2.5, 29),
    ]


def test_a_trace_must_last_as_long_as_the_cell(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(mooncake((500, 1, 1, []), (10_500, 1, 1, [])))
    assert len(take_excerpt(stage(path, speedup=2), 5.0).rows) == 1
    with pytest.raises(ConfigError, match=r"need 11 s .* have 10 s: lower duration_s"):
        take_excerpt(stage(path, speedup=2), 5.5)
    with pytest.raises(ConfigError, match=r"need 12 s"):
        take_excerpt(stage(path, start_s=7), 5.0)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"have 0 s"):
        take_excerpt(stage(path), 5.0)


def test_failures_of_the_trace_are_left_out_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(BURSTGPT)
    excerpt = take_excerpt(stage(path, "burstgpt"), 50.0)
    assert [row.output_tokens for row in excerpt.rows] == [18]
    assert excerpt.n_failed == 1
    assert "1 requests of the trace; 1 more are left out" in excerpt.note()


def test_lengths_are_scaled_then_cut_and_what_is_cut_is_counted(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        mooncake((0, 100, 1, []), (1, 1000, 400, []), (2, 800, 800, []), (9000, 1, 1, []))
    )
    excerpt = take_excerpt(
        stage(path, length_scale=0.1, max_input_tokens=80, max_output_tokens=40), 1.0
    )
    assert [(row.input_tokens, row.output_tokens) for row in excerpt.rows] == [
        (10, 1),
        (80, 40),
        (80, 40),
    ]
    assert (excerpt.n_input_cut, excerpt.n_output_cut) == (1, 1)


def texts(excerpt, *key):
    book = PromptBook()
    return [
        book.messages(
            PlannedRequest(0, "measured", (Turn("user", parts_of(row, 1000 + i, *key)),), 1)
        )[0]["content"].split(" ")
        for i, row in enumerate(excerpt.rows)
    ]


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.013])
def test_requests_share_the_text_of_their_leading_blocks_and_no_more(tmp_path, scale):
    path = tmp_path / "t.jsonl"
    path.write_text(
        mooncake(
            (0, 1500, 1, [0, 1, 2]),
            (0, 2100, 1, [0, 1, 2, 3, 4]),
            (0, 1300, 1, [0, 1, 5]),
            (0, 1500, 1, []),
            (9000, 1, 1, []),
        )
    )
    excerpt = take_excerpt(stage(path, length_scale=scale), 1.0)
    a, b, c, d = texts(excerpt, 7)
    assert [len(text) for text in (a, b, c, d)] == [
        round(n * scale) for n in (1500, 2100, 1300, 1500)
    ]
    assert b[: len(a)] == a, "the last block of `a` is the beginning of the same block of `b`"
    two = round(1024 * scale)
    assert c[:two] == a[:two]
    assert c[two:] != a[two : len(c)]
    assert d != a
    assert texts(excerpt, 7) == [a, b, c, d]
    assert texts(excerpt, 8)[0] != a, "another block of the campaign: no cache knows its texts"


@given(st.integers(0, 6000), st.floats(0.001, 3), st.none() | st.integers(1, 3000), st.booleans())
def test_pieces_add_up_to_the_prompt(tmp_path_factory, n_input, scale, most, is_shared):
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    ids = list(range(-(-n_input // 512))) if is_shared else []
    path.write_text(mooncake((0, n_input, 1, ids), (5000, 1, 1, [])))
    row = take_excerpt(stage(path, length_scale=scale, max_input_tokens=most), 1.0).rows[0]
    expected = max(1, round(n_input * scale))
    assert row.input_tokens == (expected if most is None else min(expected, most))
    parts = parts_of(row, 3)
    assert sum(part.n_tokens for part in parts) == row.input_tokens
    assert all(part.n_tokens > 0 for part in parts)
