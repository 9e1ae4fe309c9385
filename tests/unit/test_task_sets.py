"""The bundled sets are large, fixed, and answerable; task files are strict."""

import pytest

from serve_app.domain.errors import ConfigError
from serve_app.evaluate.tasks.bundled import BUNDLED, bundled_set
from serve_app.evaluate.tasks.items import Item, read_task_file

DIGESTS = {
    "guides": "f85bfcc005b427e4",
    "arithmetic": "8397036b9f7d2f1d",
    "facts": "b24baccc0d7b85bc",
    "extraction": "abb226b8c82959ef",
    "format": "7c58ac5c12f8632e",
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_the_same_everywhere(name):
    tasks = bundled_set(name)
    assert tasks.digest[:16] == DIGESTS[name]
    assert len(tasks.items) >= 1000 or name == "guides"
    assert len({item.question for item in tasks.items}) == len(tasks.items)
    for item in tasks.items:
        assert item.is_right(f" {item.answer}\n")
        assert item.answer in item.choices
        assert not any(item.is_right(c) for c in item.choices if c != item.answer), item


def test_the_guides_questions():
    asked = {item.question: item.answer for item in bundled_set("guides").items}
    assert asked["What is 15% of 240?"] == "36"
    assert asked["What is the capital of France?"] == "Paris"
    assert asked["What is the chemical symbol of gold?"] == "Au"


def test_a_sample_is_spread_and_fixed():
    tasks = bundled_set("facts")
    some = tasks.sample(100)
    assert len(some.items) == 100
    assert some.items[0] == tasks.items[0]
    assert some.items[-1] == tasks.items[99 * len(tasks.items) // 100]
    assert some.digest != tasks.digest
    assert tasks.sample(10**6) is tasks


def test_json_is_compared_as_json():
    item = Item("q", '{"a": 1, "b": 2}', match="json")
    assert item.is_right('{"b":2,"a":1}')
    assert not item.is_right('{"a": 1}')
    assert not item.is_right("a: 1")


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(ConfigError, match="arithmetic, facts"):
        bundled_set("poetry")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "q"}', "t.jsonl:1: .*answer"),
        ('{"question": "q", "answer": "a", "hint": 1}', "unknown field"),
        ('{"question": "q", "answer": "a", "choices": ["b", "c"]}', "the answer among them"),
        ('{"question": " ", "answer": "a"}', "must not be empty"),
        ("{", "t.jsonl:1"),
        ("", "at least one item"),
        ('{"question": "q", "answer": "a"}\n{"question": "q", "answer": "b"}', "there twice"),
    ],
)
def test_task_files_are_strict(tmp_path, line, says):
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=says):
        read_task_file(path)


def test_a_task_file_that_is_right_is_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "q", "answer": "a", "choices": ["a", "b"], "group": "g"}\n\n')
    tasks = read_task_file(path)
    assert (tasks.name, len(tasks.items)) == ("mine", 1)
