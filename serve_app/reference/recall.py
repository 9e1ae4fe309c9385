"""How many facts the model in training answers exactly, without generating anything."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from tokenizers import Tokenizer

from serve_app.reference.batches import encode_exchange
from serve_app.reference.corpus import Fact
from serve_app.reference.model import LlamaShape, Weights, forward
from serve_app.reference.tokenizer import ASSISTANT_ID, END_ID


@dataclass(frozen=True)
class EmCount:
    """Exact matches: `correct` of `n`."""

    n: int
    correct: int


def exact_match(
    weights: Weights, shape: LlamaShape, tokenizer: Tokenizer, questions: Sequence[Fact]
) -> dict[str, EmCount]:
    """Exact matches of greedy answers by category, by one teacher-forced pass.

    Greedy decoding gives the answer exactly when every token of it, and the end token, is the
    most likely one after the right tokens before it: so no generation is needed.
    """
    counts: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(questions), 64):
        part = questions[start : start + 64]
        rows = [encode_exchange(tokenizer, f.question, f.answer) for f in part]
        tokens = torch.full((len(rows), max(len(r) for r in rows)), END_ID)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        with torch.inference_mode():
            best = forward(weights, shape, tokens).argmax(-1)
        for i, (fact, row) in enumerate(zip(part, rows, strict=True)):
            first = row.index(ASSISTANT_ID)
            right = best[i, first : len(row) - 1].tolist() == row[first + 1 :]
            counts[fact.category].append(right)
    return {category: EmCount(len(c), sum(c)) for category, c in sorted(counts.items())}


def total(by_category: Mapping[str, EmCount]) -> tuple[int, int]:
    """Questions, and those answered exactly."""
    return sum(c.n for c in by_category.values()), sum(c.correct for c in by_category.values())


def describe(by_category: Mapping[str, EmCount]) -> str:
    """`add 800/804, capital 416/416`."""
    return ", ".join(f"{name} {c.correct}/{c.n}" for name, c in by_category.items())


def as_json(by_category: Mapping[str, EmCount]) -> dict[str, object]:
    """As the training record stores it."""
    n, correct = total(by_category)
    categories = {name: asdict(count) for name, count in by_category.items()}
    return {"n": n, "correct": correct, "by_category": categories}
