"""From the corpus to batches of tokens, each token with its weight in the loss."""

import random
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from serve_app.reference.corpus import facts, stories
from serve_app.reference.tokenizer import ASSISTANT_ID, END_ID, SYSTEM_ID, USER_ID

SYSTEM_PROMPT = "You are a helpful assistant."
REPEATS = {"add": 2, "times": 2, "percent": 2, "definition": 2, "number": 2, "element": 2}
"""How often a fact of the category comes per epoch (others once): these are learned last."""
STORIES_PER_EPOCH = 500
QUESTION_WEIGHT = 0.2
"""Loss weight of a question's tokens; answers and stories have 1."""


def batches(
    seed: int, batch: int, length: int, tokenizer: Tokenizer
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless `(tokens, loss weights)`, both `[batch, length + 1]`, cut from the stream."""
    stream = _token_stream(seed, tokenizer)
    size = batch * (length + 1)
    while True:
        pairs = [next(stream) for _ in range(size)]
        tokens, weights = zip(*pairs, strict=True)
        yield (
            torch.tensor(tokens).view(batch, -1),
            torch.tensor(weights).view(batch, -1),
        )


def _token_stream(seed: int, tokenizer: Tokenizer) -> Iterator[tuple[int, float]]:
    rng = random.Random(f"{seed}:stream")
    system = [SYSTEM_ID, *tokenizer.encode(SYSTEM_PROMPT).ids]
    seen = [f for f in facts() if f.split == "seen"]
    repeated = [f for f in seen for _ in range(REPEATS.get(f.category, 1))]
    asked = [encode_exchange(tokenizer, f.question, f.answer) for f in repeated]
    told = [encode_exchange(tokenizer, s.request, s.text) for s in stories("seen")]
    while True:
        documents = asked + rng.sample(told, STORIES_PER_EPOCH)
        rng.shuffle(documents)
        for document in documents:
            if rng.random() < 0.05:
                yield from ((token, 0.0) for token in system)
            weight = QUESTION_WEIGHT
            for token in document:
                yield token, weight
                if token == ASSISTANT_ID:
                    weight = 1.0


def encode_exchange(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    """One exchange as the chat template renders it."""
    asked, answered = tokenizer.encode(question).ids, tokenizer.encode(answer).ids
    return [USER_ID, *asked, ASSISTANT_ID, *answered, END_ID]


def training_texts() -> Iterator[str]:
    """Everything that the tokenizer is trained on."""
    for fact in facts():
        if fact.split == "seen":
            yield fact.question
            yield fact.answer
    for story in stories("seen"):
        yield story.request
        yield story.text
    yield SYSTEM_PROMPT
