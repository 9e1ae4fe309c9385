import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loadtests.campaign import CorpusPrompts, JsonlPrompts, TracePrompts, Workload
from loadtests.plan.prompts import PromptBook, chat_body, load_prompts
from loadtests.plan.request import Part, PlannedRequest, Turn
from loadtests.plan.words import WORDS, make_text
from serve_app.domain.errors import ConfigError
from serve_app.reference.build import CHECKPOINT


def request(*turns: Turn) -> PlannedRequest:
    return PlannedRequest(offset_ns=0, phase="measured", turns=turns, max_tokens=4)


@given(st.integers(0, 2**63), st.integers(1, 300), st.integers(0, 300))
def test_a_shorter_text_begins_a_longer_one(seed, n, more):
    short, long = make_text(seed, n).split(" "), make_text(seed, n + more).split(" ")
    assert len(short) == n
    assert long[:n] == short
    assert set(long) <= set(WORDS)


def test_seeds_make_different_texts():
    assert len({make_text(seed, 12) for seed in range(2000)}) == 2000


def test_words_are_used_alike():
    words = make_text(3, 128_000).split(" ")
    assert len(WORDS) == len(set(WORDS)) == 128
    assert all(800 < words.count(word) < 1200 for word in WORDS)


def test_texts_are_the_same_in_every_process():
    code = "from loadtests.plan.words import make_text; print(make_text(2026, 9))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {make_text(2026, 9) + "\n"}


def test_a_word_is_a_token_of_the_reference_model():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    n_tokens = len(tokenizer.encode(make_text(1, 500)).ids)
    assert 500 <= n_tokens <= 502  # the first word has no space before it


def test_making_a_long_prompt_takes_about_a_millisecond():
    times = []
    for seed in range(5):
        start = time.perf_counter()
        make_text(seed, 10_000)
        times.append(time.perf_counter() - start)
    print(f"10,000 words in {min(times) * 1e3:.2f} ms")
    assert min(times) < 0.01


def test_parts_become_one_message_per_turn():
    book = PromptBook(("What is 1 + 1?", "Who are you?"))
    messages = book.messages(
        request(
            Turn("user", (Part(7, 3), Part(1))),
            Turn("assistant", (Part(8, 2),)),
            Turn("user", (Part(0),)),
        )
    )
    assert messages == [
        {"role": "user", "content": f"{make_text(7, 3)} Who are you?"},
        {"role": "assistant", "content": make_text(8, 2)},
        {"role": "user", "content": "What is 1 + 1?"},
    ]


@pytest.mark.parametrize(("ratio", "n_words"), [(1.0, 100), (1.25, 80), (0.5, 200), (1000.0, 1)])
def test_the_targets_own_count_decides_how_many_words_there_are(ratio, n_words):
    messages = PromptBook((), ratio).messages(request(Turn("user", (Part(7, 100),))))
    assert messages[0]["content"] == make_text(7, n_words)


def test_a_ratio_of_nothing_is_refused():
    with pytest.raises(ValueError, match="tokens_per_word"):
        PromptBook((), 0.0)


def test_a_body_asks_for_usage_and_forces_the_length():
    prompts = CorpusPrompts()
    messages = PromptBook(("Hi!",)).messages(request(Turn("user", (Part(0),))))
    forced = chat_body(Workload(prompts=prompts, max_tokens=(1, 2)), "m@a", messages, 9)
    assert json.loads(forced) == {
        "model": "m@a",
        "messages": [{"role": "user", "content": "Hi!"}],
        "max_tokens": 9,
        "min_tokens": 9,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    free = Workload(prompts=prompts, max_tokens=(1, 2), forced_length=False, temperature=0.5)
    body = json.loads(chat_body(free, "m", messages, 9))
    assert body["temperature"] == 0.5
    assert "min_tokens" not in body
    assert "ignore_eos" not in body


def test_corpus_prompts_are_the_questions_of_their_split():
    seen, unseen = (load_prompts(CorpusPrompts(split=split)) for split in ("seen", "unseen"))
    assert "What is the capital of France?" in seen
    assert not set(seen) & set(unseen)


def test_made_text_needs_no_prompts():
    assert load_prompts(TracePrompts(kind="trace")) == ()


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.jsonl"
    source = JsonlPrompts(kind="jsonl", path=path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_prompts(source)
    path.write_text('{"prompt": "one"}\n\n{"prompt": "two"}')
    assert load_prompts(source) == ("one", "two")
    path.write_text("\n")
    with pytest.raises(ConfigError, match="have none"):
        load_prompts(source)


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": 1}',
        b'{"prompt": "x", "answer": "y"}',
        b"{}",
        b"x",
        b'{"prompt": "caf\xe9"}',  # Latin-1
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "one"}\n' + line + b"\n")
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2: need"):
        load_prompts(JsonlPrompts(kind="jsonl", path=path))
