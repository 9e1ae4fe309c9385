"""Token ids that every variant is asked about: made once, by the baseline's tokenizer."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.evaluate.endpoint import Endpoint, NoTokenizerError, RequestFailedError
from serve_app.evaluate.settings import Settings
from serve_app.evaluate.store import TOKENS, Store, fill
from serve_app.evaluate.tasks.items import TaskSet
from serve_app.reference.corpus import Exchange, facts, stories

Ids = tuple[int, ...]
TOKENIZE_CONCURRENCY = 8
Progress = Callable[[str, int, int], None]
"""What is being asked, how many of it are done, of how many."""


@dataclass(frozen=True)
class Passage:
    """Token ids, of which those from `start` on are scored."""

    ids: Ids
    start: int


@dataclass(frozen=True)
class Prepared:
    """What log-probabilities are asked of; `gap`: why they cannot be."""

    windows: tuple[Ids, ...] = ()
    window_bytes: tuple[int, ...] | None = None
    answers: tuple[Passage, ...] = ()
    choices: Mapping[str, tuple[tuple[Passage, ...], ...]] = field(default_factory=dict)
    """By set: the choices of each item."""
    gap: str | None = None

    @property
    def digest(self) -> str | None:
        """SHA-256 (hex) of the windows' token ids."""
        if not self.windows:
            return None
        return hashlib.sha256(repr(self.windows).encode()).hexdigest()


def unseen_exchanges() -> list[Exchange]:
    """Stories and questions that the reference model was not trained on, alternating."""
    told = [Exchange(s.request, s.text) for s in stories("unseen")]
    asked = [Exchange(f.question, f.answer) for f in facts() if f.split == "unseen"]
    mixed: list[Exchange] = []
    for i in range(max(len(told), len(asked))):
        mixed += told[i : i + 1] + asked[i : i + 1]
    return mixed


def cut_windows(ids: Sequence[int], length: int, n: int | None) -> tuple[Ids, ...]:
    """Windows of `length` tokens one after the other; what is left at the end is dropped."""
    whole = len(ids) // length
    return tuple(
        tuple(ids[i * length : (i + 1) * length])
        for i in range(whole if n is None else min(n, whole))
    )


def passage(prompt: Sequence[int], whole: Sequence[int]) -> Passage:
    """The answer's tokens are those after what the two have in common."""
    start = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return Passage(tuple(whole), max(1, start))


async def prepare(
    endpoint: Endpoint, model: str, settings: Settings, store: Store, progress: Progress
) -> Prepared:
    """Tokenize everything; what was tokenized before is read again.

    A `gap` only where the endpoint has no such route. Raises EngineError where a request failed:
    another run may get the answer, and without it no perplexity would be judged.
    """
    try:
        windows, sizes = await _windows(endpoint, model, settings, store, progress)
        answers = await _answers(endpoint, model, settings, store, progress)
        choices = {
            each.name: await _choices(endpoint, model, each, store, progress)
            for each in settings.sets
            if any(item.choices for item in each.items)
        }
    except NoTokenizerError as error:
        return Prepared(gap=f"the endpoint does not tokenize: {error}")
    gap = None if windows else f"the text has less than {settings.window_tokens} tokens"
    return Prepared(windows, sizes, answers, choices, gap)


async def _windows(
    endpoint: Endpoint, model: str, settings: Settings, store: Store, progress: Progress
) -> tuple[tuple[Ids, ...], tuple[int, ...] | None]:
    exchanges = unseen_exchanges() if settings.text is None else []
    paragraphs = [] if settings.text is None else settings.text.split("\n\n")

    async def tokens(i: int) -> dict[str, object]:
        if settings.text is None:
            return {"ids": await endpoint.tokenize_chat(model, *exchanges[i])}
        end = "\n\n" if i + 1 < len(paragraphs) else ""
        return {"ids": await endpoint.tokenize(model, paragraphs[i] + end)}

    texts = paragraphs or ["\n".join(exchange) for exchange in exchanges]
    found = await _all(store, model, "text", texts, tokens, progress)
    stream = [token for record in found for token in record["ids"]]
    windows = cut_windows(stream, settings.window_tokens, settings.sizes.windows)

    async def size(i: int) -> dict[str, object]:
        return {"bytes": len((await endpoint.detokenize(model, windows[i][1:])).encode())}

    try:
        measured = await _all(store, model, "bytes", [repr(w) for w in windows], size, progress)
    except (NoTokenizerError, RequestFailedError):
        return windows, None
    return windows, tuple(record["bytes"] for record in measured)


async def _answers(
    endpoint: Endpoint, model: str, settings: Settings, store: Store, progress: Progress
) -> tuple[Passage, ...]:
    known = unseen_exchanges()
    n = min(settings.sizes.answers, len(known))
    picked = [known[i * len(known) // n] for i in range(n)]

    async def tokens(i: int) -> dict[str, object]:
        request, answer = picked[i]
        return {
            "prompt": await endpoint.tokenize_chat(model, request),
            "wholes": [await endpoint.tokenize_chat(model, request, answer)],
        }

    found = await _all(store, model, "answers", ["\n".join(e) for e in picked], tokens, progress)
    return tuple(passage(record["prompt"], record["wholes"][0]) for record in found)


async def _choices(
    endpoint: Endpoint, model: str, tasks: TaskSet, store: Store, progress: Progress
) -> tuple[tuple[Passage, ...], ...]:
    """With the template's end of turn: the probability of answering that, and no more."""

    async def tokens(i: int) -> dict[str, object]:
        item = tasks.items[i]
        return {
            "prompt": await endpoint.tokenize_chat(model, item.question),
            "wholes": [
                await endpoint.tokenize_chat(model, item.question, choice)
                for choice in item.choices
            ],
        }

    found = await _all(
        store, model, tasks.name, [tasks.digest] * len(tasks.items), tokens, progress
    )
    return tuple(
        tuple(passage(record["prompt"], whole) for whole in record["wholes"]) for record in found
    )


async def _all(
    store: Store,
    model: str,
    name: str,
    texts: Sequence[str],
    ask: Callable[[int], Awaitable[dict[str, object]]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Token records of all texts, in order. Raises RequestFailedError where one has none."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    file = store.file(TOKENS, name, {"model": model, "digest": digest})
    await fill(
        file,
        len(texts),
        ask,
        TOKENIZE_CONCURRENCY,
        lambda n, of: progress(f"tokens of {name}", n, of),
    )
    failed, records = file.failures(), file.records()
    if failed:
        raise RequestFailedError(
            f"{len(failed)} of {len(texts)} texts of {name} were not tokenized: "
            f"{next(iter(failed.values()))}: run the same command again"
        )
    return [records[i] for i in range(len(texts))]
