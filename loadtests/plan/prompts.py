"""The text of a plan's requests, and the bodies that carry it."""

from collections.abc import Sequence
from typing import Literal, TypedDict

import msgspec

from loadtests.campaign import CorpusPrompts, JsonlPrompts, Workload
from loadtests.campaign.workload import Prompts
from loadtests.plan.request import Part, PlannedRequest
from loadtests.plan.words import TOKENS_PER_WORD, make_text
from serve_app.domain.errors import ConfigError


class Message(TypedDict):
    """One message of the chat API."""

    role: Literal["user", "assistant"]
    content: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str


def load_prompts(source: Prompts) -> tuple[str, ...]:
    """The prompts in a fixed order; none where the text is made.

    Raises ConfigError, with the line, if the file is unreadable, empty or not as it should be.
    """
    if isinstance(source, CorpusPrompts):
        from serve_app.reference.corpus import facts

        return tuple(fact.question for fact in facts() if fact.split == source.split)
    if not isinstance(source, JsonlPrompts):
        return ()
    try:
        lines = source.path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{source.path}: cannot read prompts: {error}") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompts.append(msgspec.json.decode(line, type=_Line).prompt)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'{source.path}:{number}: need {{"prompt": "..."}}, have {line[:80]!r}: {error}'
            ) from error
    if not prompts:
        raise ConfigError(f"{source.path}: need one or more prompts, have none")
    return tuple(prompts)


class PromptBook:
    """Turns planned requests into text: the campaign's prompts, and text made to a length.

    `tokens_per_word` is the target's count for made text, where it was asked.
    """

    def __init__(
        self, entries: Sequence[str] = (), tokens_per_word: float = TOKENS_PER_WORD
    ) -> None:
        if tokens_per_word <= 0:
            raise ValueError(f"tokens_per_word: need > 0, have {tokens_per_word}")
        self._entries = entries
        self._tokens_per_word = tokens_per_word

    def messages(self, request: PlannedRequest) -> list[Message]:
        """The conversation of one request. The parts of a turn are put together with spaces."""
        return [
            Message(role=turn.role, content=" ".join(map(self._text, turn.parts)))
            for turn in request.turns
        ]

    def _text(self, part: Part) -> str:
        if part.n_tokens is None:
            return self._entries[part.seed]
        return make_text(part.seed, max(1, round(part.n_tokens / self._tokens_per_word)))


def chat_body(
    workload: Workload, model: str, messages: Sequence[Message], max_tokens: int
) -> bytes:
    """JSON of one streamed chat request that asks for usage, and for a length if it is forced."""
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": workload.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.forced_length:
        body |= {"ignore_eos": True, "min_tokens": max_tokens}
    return msgspec.json.encode(body)
