import hashlib
import json
from collections import Counter

from serve_app.reference.build import CHECKPOINT
from serve_app.reference.corpus import check_exchanges, corpus_digest, facts, stories

RECORD = json.loads((CHECKPOINT / "training_record.json").read_text())


def test_the_committed_checkpoint_was_trained_on_this_corpus():
    assert RECORD["corpus_sha256"] == corpus_digest()


def test_the_record_belongs_to_the_committed_weights():
    weights = (CHECKPOINT / "model.safetensors").read_bytes()
    assert RECORD["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_the_committed_checkpoint_passed_its_bar():
    seen = RECORD["exact_match"]["seen"]
    assert seen["n"] == sum(f.split == "seen" for f in facts())
    assert seen["correct"] >= 0.95 * seen["n"]


def test_documented_questions_are_seen():
    answers = {f.question: f.answer for f in facts() if f.split == "seen"}
    assert answers["What is the capital of France?"] == "Paris"
    assert answers["What is 15% of 240?"] == "36"
    assert answers["What is the chemical symbol of gold?"] == "Au"


def test_no_question_is_asked_twice():
    counts = Counter(f.question for f in facts())
    assert [q for q, n in counts.items() if n > 1] == []


def test_every_category_has_both_splits_except_greetings():
    splits: dict[str, set[str]] = {}
    for fact in facts():
        splits.setdefault(fact.category, set()).add(fact.split)
    assert splits.pop("greeting") == {"seen"}
    assert set(map(frozenset, splits.values())) == {frozenset({"seen", "unseen"})}


def test_arithmetic_is_right():
    operations = {
        " + ": lambda a, b: a + b,
        " plus ": lambda a, b: a + b,
        " times ": lambda a, b: a * b,
        "% of ": lambda a, b: a * b / 100,
        " % of ": lambda a, b: a * b / 100,
        " percent of ": lambda a, b: a * b / 100,
    }
    checked = 0
    for fact in facts():
        if fact.category not in ("add", "times", "percent"):
            continue
        asked = fact.question.removeprefix("What is ").removesuffix("?")
        sign = max((s for s in operations if s in asked), key=len)
        a, b = asked.split(sign)
        assert float(fact.answer) == operations[sign](int(a), int(b)), fact
        checked += 1
    assert checked > 1000


def test_a_held_out_sum_is_held_out_in_either_order_and_phrasing():
    unseen, seen = set(), set()
    for fact in facts():
        if fact.category == "add":
            words = fact.question.removesuffix("?").replace("plus", "+").split()
            (unseen if fact.split == "unseen" else seen).add(frozenset({words[2], words[4]}))
    assert unseen
    assert not unseen & seen


def test_stories_are_split_and_repeatable():
    seen = {s.text for s in stories("seen")}
    assert len(seen) == len(stories("seen"))
    assert not seen & {s.text for s in stories("unseen")}


def test_check_exchanges_hold_the_documented_answers():
    assert ("What is 15% of 240?", "36") in check_exchanges()
