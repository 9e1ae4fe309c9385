"""Answers of an earlier stage are taken over where the question was the same, and only there."""

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.domain.quality import QualityBar
from serve_app.evaluate.settings import FULL, Settings
from serve_app.pipeline.reuse import take_answers

ASKED = Settings("http://x/v1", sets=(), sizes=FULL)


@pytest.fixture
def earlier(tmp_path) -> Path:
    """Baseline and INT8, asked and answered."""
    for name in ("baseline", "noise-floor", "int8", "tokens"):
        folder = tmp_path / "int8" / "raw" / name
        folder.mkdir(parents=True)
        (folder / "facts.jsonl").write_text(name)
    return tmp_path / "int8"


def there(out: Path) -> set[str]:
    return {each.name for each in out.glob("raw/*")}


def test_who_was_asked_is_not_asked_again(earlier, tmp_path):
    out = tmp_path / "out"
    taken = take_answers(
        ("baseline", "int8", "gptq"), ASKED, {earlier: (("baseline", "int8"), ASKED)}, out
    )
    assert taken == ("baseline", "int8")
    assert there(out) == {"baseline", "noise-floor", "int8", "tokens"}
    assert (out / "raw" / "int8" / "facts.jsonl").read_text() == "int8"


def test_another_bar_is_no_other_question(earlier, tmp_path):
    stricter = replace(ASKED, bar=QualityBar(margin=0.001))
    assert take_answers(
        ("baseline",), stricter, {earlier: (("baseline",), ASKED)}, tmp_path / "out"
    )


@pytest.mark.parametrize("change", [{"seed": 1}, {"text": "my own"}, {"task_concurrency": 4}])
def test_another_question_is_asked(earlier, tmp_path, change):
    other = {earlier: (("baseline", "int8"), replace(ASKED, **change))}
    assert take_answers(("baseline", "int8"), ASKED, other, tmp_path / "out") == ()
    assert there(tmp_path / "out") == set()


def test_the_noise_floor_is_that_of_the_same_baseline(earlier, tmp_path):
    out = tmp_path / "out"
    take_answers(("int8", "gptq"), ASKED, {earlier: (("baseline", "int8"), ASKED)}, out)
    assert there(out) == {"int8"}


def test_what_is_there_already_stays(earlier, tmp_path):
    mine = tmp_path / "out" / "raw" / "int8"
    mine.mkdir(parents=True)
    assert take_answers(
        ("baseline", "int8"), ASKED, {earlier: (("baseline", "int8"), ASKED)}, tmp_path / "out"
    ) == ("baseline",)
    assert list(mine.iterdir()) == []
