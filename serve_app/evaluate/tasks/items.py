"""A task set: its items, its digest, and files of the user's own."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from serve_app.domain.errors import ConfigError

MAX_ANSWER_TOKENS = 48


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question. `choices` hold the answer and wrong ones; items of one `group` (the same fact
    in other words) count as one when intervals are made. `match`: `json` compares what is parsed.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    group: str | None = None
    match: Literal["exact", "json"] = "exact"

    def __post_init__(self) -> None:
        """Raise ValueError for an item that nothing could answer."""
        if not self.question.strip() or not self.answer.strip():
            raise ValueError("question and answer must not be empty")
        if self.choices and (
            self.answer not in self.choices
            or len(set(self.choices)) != len(self.choices)
            or len(self.choices) < 2
        ):
            raise ValueError("choices must be two or more, distinct, with the answer among them")

    def is_right(self, given: str) -> bool:
        """White space at the ends does not count."""
        if self.match == "json":
            try:
                return bool(json.loads(given) == json.loads(self.answer))
            except ValueError:
                return False
        return given.strip() == self.answer.strip()


@dataclass(frozen=True)
class TaskSet:
    """Items in the order in which they are asked."""

    name: str
    origin: str
    items: tuple[Item, ...]
    max_tokens: int = MAX_ANSWER_TOKENS

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the items."""
        found = hashlib.sha256()
        for item in self.items:
            found.update(msgspec.json.encode(item) + b"\n")
        return found.hexdigest()

    def sample(self, n: int | None) -> "TaskSet":
        """At most `n` items, evenly spread, the same every time; None: all."""
        if n is None or n >= len(self.items):
            return self
        picked = tuple(self.items[index * len(self.items) // n] for index in range(n))
        return replace(self, items=picked)


def read_task_file(path: Path) -> TaskSet:
    """A JSONL file, one `Item` a line. Raises ConfigError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task file {path} cannot be read: {error}") from error
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(msgspec.json.decode(line, type=Item))
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError(
                f"{path}:{number}: {error}: need one JSON object a line, with question, answer "
                "and, if wanted, choices, group, match (exact or json)"
            ) from error
    if not items:
        raise ConfigError(f"{path}: need at least one item, have none")
    _refuse_repeated(path, items)
    return TaskSet(path.stem, str(path), tuple(items))


def _refuse_repeated(path: Path, items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.question in seen:
            raise ConfigError(f"{path}: the question {item.question!r} is there twice")
        seen.add(item.question)
