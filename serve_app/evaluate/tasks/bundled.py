"""The sets that come with the package. Two machines make the same items; a digest proves it.

`arithmetic` and `facts` are the reference model's own corpus; `extraction` and `format` are what
it was never trained on: floors for it, tasks for a real model.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from serve_app.domain.errors import ConfigError
from serve_app.evaluate.tasks.items import Item, TaskSet
from serve_app.reference.corpus import SEED, Fact, facts
from serve_app.reference.stories import NAMES, PLACES, THINGS, make_story

N_GENERATED = 1000
N_CHOICES = 4
_COMPUTED = ("add", "times", "percent")
GUIDES = (
    Item("What is 15% of 240?", "36", ("36", "24", "38", "360")),
    Item("What is the capital of France?", "Paris", ("Paris", "London", "Rome", "Berlin")),
    Item("What is the chemical symbol of gold?", "Au", ("Au", "Ag", "Go", "Gd")),
)
"""What the documentation asks."""


def _arithmetic() -> Iterator[Item]:
    for fact in facts():
        if fact.category in _COMPUTED:
            rng = random.Random(f"{SEED}:choices:{fact.question}")
            answer = int(fact.answer)
            near = [answer + d for d in (1, -1, 2, -2, 5, 10, -10, 11, 20) if answer + d >= 0]
            wrong = [str(number) for number in rng.sample(near, N_CHOICES - 1)]
            digits = "".join(c if c.isdigit() else " " for c in fact.question).split()
            group = f"{fact.category}:{':'.join(sorted(digits, key=int))}"
            yield Item(fact.question, fact.answer, _shuffled(rng, fact.answer, wrong), group)


def _facts() -> Iterator[Item]:
    known = [f for f in facts() if f.category not in (*_COMPUTED, "greeting")]
    answers: dict[str, list[str]] = {}
    for fact in known:
        pool = answers.setdefault(fact.category, [])
        if fact.answer not in pool:
            pool.append(fact.answer)
    for fact in _distinct(known):
        rng = random.Random(f"{SEED}:choices:{fact.question}")
        others = [answer for answer in answers[fact.category] if answer != fact.answer]
        wrong = rng.sample(others, N_CHOICES - 1)
        group = f"{fact.category}:{fact.answer}"
        yield Item(fact.question, fact.answer, _shuffled(rng, fact.answer, wrong), group)


def _distinct(known: Sequence[Fact]) -> Iterator[Fact]:
    """A question that two tables answer differently has no one right answer."""
    answers: dict[str, set[str]] = {}
    for fact in known:
        answers.setdefault(fact.question, set()).add(fact.answer)
    seen: set[str] = set()
    for fact in known:
        if len(answers[fact.question]) == 1 and fact.question not in seen:
            seen.add(fact.question)
            yield fact


def _extraction() -> Iterator[Item]:
    rng = random.Random(f"{SEED}:extraction")
    while True:
        story = make_story(rng)
        opening = story.text.split(". ")[0]
        name, _, rest = opening.partition(" called ")[2].partition(" went to ")
        place, kind = rest.rstrip("."), rng.randrange(3)
        things = [thing for thing in THINGS if thing in story.text]
        pool: Sequence[str]
        if kind == 0:
            asked, answer, pool = f"Where did {name} go?", place, PLACES
        elif kind == 1 and len(things) == 1:
            asked, answer, pool = "What was found or looked for?", things[0], THINGS
        else:
            asked, answer, pool = "What is the name of the first animal?", name, NAMES
        question = (
            f"Read the text and answer with words from it, nothing else.\nText: {story.text}\n"
            f"Question: {asked}"
        )
        wrong = rng.sample([other for other in pool if other != answer], N_CHOICES - 1)
        yield Item(question, answer, _shuffled(rng, answer, wrong))


def _format() -> Iterator[Item]:
    rng = random.Random(f"{SEED}:format")
    kinds: Sequence[Callable[[random.Random], Item]] = (_as_json, _as_csv, _in_capitals, _reversed)
    while True:
        yield kinds[rng.randrange(len(kinds))](rng)


def _as_json(rng: random.Random) -> Item:
    name, age, place = rng.choice(NAMES), rng.randrange(5, 90), rng.choice(PLACES)
    right = {"name": name, "age": age, "place": place}
    asked = (
        "Answer with one JSON object and nothing else; keys: name (text), age (number), place "
        f"(text). {name} is {age} years old and lives near {place}."
    )
    answer = json.dumps(right)
    wrong = [f"name: {name}, age: {age}", json.dumps({"name": name}), f"{name}, {age}, {place}"]
    return Item(asked, answer, _shuffled(rng, answer, wrong), match="json")


def _as_csv(rng: random.Random) -> Item:
    values = [str(number) for number in rng.sample(range(10, 100), 4)]
    answer = ",".join(values)
    asked = (
        "Write these numbers on one line, separated by commas, without spaces: "
        f"{' and '.join(values)}."
    )
    wrong = [" ".join(values), ", ".join(values), ",".join(values[:-1])]
    return Item(asked, answer, _shuffled(rng, answer, wrong))


def _in_capitals(rng: random.Random) -> Item:
    thing = f"{rng.choice(THINGS)} near {rng.choice(PLACES)}"
    asked = f"Write the following in capital letters and add nothing: {thing}"
    wrong = [thing, thing.title(), thing.capitalize()]
    return Item(asked, thing.upper(), _shuffled(rng, thing.upper(), wrong))


def _reversed(rng: random.Random) -> Item:
    names = rng.sample(NAMES, 4)
    answer = "\n".join(f"- {name}" for name in reversed(names))
    asked = (
        "Write this list in the opposite order, one entry a line, each after '- ': "
        f"{', '.join(names)}."
    )
    wrong = ["\n".join(f"- {name}" for name in names), ", ".join(reversed(names)), names[-1]]
    return Item(asked, answer, _shuffled(rng, answer, wrong))


def _shuffled(rng: random.Random, answer: str, wrong: Sequence[str]) -> tuple[str, ...]:
    choices = [answer, *wrong]
    rng.shuffle(choices)
    return tuple(choices)


def _generated(items: Iterator[Item]) -> tuple[Item, ...]:
    made: dict[str, Item] = {}
    while len(made) < N_GENERATED:
        item = next(items)
        made.setdefault(item.question, item)
    return tuple(made.values())


_SETS: Mapping[str, Callable[[], tuple[Item, ...]]] = {
    "guides": lambda: GUIDES,
    "arithmetic": lambda: tuple(_arithmetic()),
    "facts": lambda: tuple(_facts()),
    "extraction": lambda: _generated(_extraction()),
    "format": lambda: _generated(_format()),
}
BUNDLED = tuple(_SETS)


def bundled_set(name: str) -> TaskSet:
    """Raises ConfigError for a name that there is not."""
    if name not in _SETS:
        raise ConfigError(
            f"there is no task set {name!r}: need one of {', '.join(BUNDLED)}, or a .jsonl file"
        )
    return TaskSet(name, "bundled", _SETS[name](), max_tokens=96 if name == "format" else 48)
