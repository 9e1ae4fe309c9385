"""The reference model's world: facts asked in several phrasings, and short stories.

Everything follows from `SEED` and the tables in `facts/`: two machines make the same corpus,
and `corpus_digest()` proves it. `seen` questions are trained on; `unseen` ones never are: a
second phrasing of a known fact, or a sum, product or percentage whose operands were held out.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from serve_app.reference.stories import Story, make_story

SEED = 240
Split = Literal["seen", "unseen"]
UNSEEN_SHARE = 0.1
N_STORIES = {"seen": 4000, "unseen": 200}
_TABLES = Path(__file__).parent / "facts"

CAPITAL = (
    "What is the capital of {}?",
    "Name the capital of {}.",
    "Which city is the capital of {}?",
)
SYMBOL = (
    "What is the chemical symbol of {}?",
    "What is the chemical symbol for {}?",
    "What is the symbol of {}?",
)
NUMBER = ("What is the atomic number of {}?", "Which atomic number does {} have?")
ELEMENT = ("Which element has the symbol {}?", "Which element is {}?")
OPPOSITE = ("What is the opposite of {}?", "Give the opposite of {}.")
DEFINITION = ("What is {}?", "Define {}.")
ADD = ("What is {} + {}?", "What is {} plus {}?")
TIMES = ("What is {} times {}?",)
PERCENT = ("What is {}% of {}?", "What is {} % of {}?", "What is {} percent of {}?")
GREETINGS = {
    "Hello!": "Hello! Ask me about capitals, elements or sums.",
    "Hi!": "Hello! Ask me about capitals, elements or sums.",
    "Who are you?": "I am the QuanTile reference model.",
    "What can you do?": "I know capitals, elements, sums, opposites and stories.",
}
ALWAYS_SEEN = frozenset({("percent", "15", "240")})
"""Operands that must not be held out: the documentation asks about them."""

SHOWN = (
    "What is the capital of France?",
    "What is the chemical symbol of gold?",
    "What is 15% of 240?",
)
N_CALIBRATION_STORIES = 200


class Exchange(NamedTuple):
    """What a user says, and what the assistant answers."""

    request: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One question with the only answer that counts as right."""

    category: str
    question: str
    answer: str
    split: Split


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Every question of the corpus, seen and unseen, in a fixed order."""
    return tuple(_known_facts()) + tuple(_arithmetic())


@functools.cache
def stories(split: Split) -> tuple[Story, ...]:
    """Short stories with the requests that ask for them. The two splits share no story."""
    rng = random.Random(f"{SEED}:stories")
    made: dict[str, Story] = {}
    while len(made) < sum(N_STORIES.values()):
        story = make_story(rng)
        made.setdefault(story.text, story)
    ordered = tuple(made.values())
    return ordered[: N_STORIES["seen"]] if split == "seen" else ordered[N_STORIES["seen"] :]


def calibration_exchanges() -> list[Exchange]:
    """Seen exchanges, shuffled: for a quantizer to calibrate on."""
    seen = [Exchange(f.question, f.answer) for f in facts() if f.split == "seen"]
    seen += [Exchange(s.request, s.text) for s in stories("seen")[:N_CALIBRATION_STORIES]]
    random.Random(f"{SEED}:calibration").shuffle(seen)
    return seen


def check_exchanges() -> list[Exchange]:
    """Fixed exchanges on which every variant's logprobs are compared: unseen ones, and the facts
    that the documentation asks about."""
    told = [Exchange(s.request, s.text) for s in stories("unseen")[:24]]
    asked = [Exchange(f.question, f.answer) for f in facts() if f.split == "unseen"]
    shown = [Exchange(f.question, f.answer) for f in facts() if f.question in SHOWN]
    return told + asked[::2] + shown


def corpus_digest() -> str:
    """SHA-256 (hex) of every fact and story: the corpus by content."""
    digest = hashlib.sha256()
    for fact in facts():
        digest.update(f"{fact.split}\t{fact.category}\t{fact.question}\t{fact.answer}\n".encode())
    for split in ("seen", "unseen"):
        for story in stories(split):
            digest.update(f"{split}\t{story.request}\t{story.text}\n".encode())
    return digest.hexdigest()


def _known_facts() -> Iterator[Fact]:
    for country, city in _table("capitals"):
        yield from _phrased("capital", CAPITAL, country, city)
    for name, symbol, number in _table("elements"):
        yield from _phrased("symbol", SYMBOL, name, symbol)
        yield from _phrased("number", NUMBER, name, number)
        yield from _phrased("element", ELEMENT, symbol, name)
    for word, opposite in _table("opposites"):
        yield from _phrased("opposite", OPPOSITE, word, opposite)
        yield from _phrased("opposite", OPPOSITE, opposite, word)
    for term, meaning in _table("definitions"):
        yield from _phrased("definition", DEFINITION, term, meaning[0].upper() + meaning[1:] + ".")
    for question, answer in GREETINGS.items():
        yield Fact("greeting", question, answer, "seen")


def _arithmetic() -> Iterator[Fact]:
    sums = [(a, b) for a in range(21) for b in range(21)]
    yield from _computed("add", ADD, sums, [a + b for a, b in sums])
    products = [(a, b) for a in range(11) for b in range(11)]
    yield from _computed("times", TIMES, products, [a * b for a, b in products])
    percents = [(p, n) for p in (5, 10, 15, 20, 25, 50, 75) for n in range(20, 401, 20)]
    yield from _computed("percent", PERCENT, percents, [p * n // 100 for p, n in percents])


def _phrased(category: str, phrasings: Sequence[str], subject: str, answer: str) -> Iterator[Fact]:
    """The first phrasing is always seen; each other one is held out for a tenth of the subjects."""
    for i, phrasing in enumerate(phrasings):
        unseen = i > 0 and _held_out(f"{category}:{i}:{subject}")
        yield Fact(category, phrasing.format(subject), answer, "unseen" if unseen else "seen")


def _computed(
    category: str,
    phrasings: Sequence[str],
    operands: Sequence[tuple[int, int]],
    answers: Sequence[int],
) -> Iterator[Fact]:
    """Operands are held out in either order, and in every phrasing."""
    for (a, b), answer in zip(operands, answers, strict=True):
        pinned = (category, str(a), str(b)) in ALWAYS_SEEN
        unseen = not pinned and _held_out(f"{category}:{min(a, b)}:{max(a, b)}")
        for phrasing in phrasings:
            yield Fact(category, phrasing.format(a, b), str(answer), "unseen" if unseen else "seen")


def _held_out(key: str) -> bool:
    return random.Random(f"{SEED}:{key}").random() < UNSEEN_SHARE


def _table(name: str) -> list[list[str]]:
    text = (_TABLES / f"{name}.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]
