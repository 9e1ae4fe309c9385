"""Read what an OpenAI answer says, from its whole body: JSON, or the events of a stream."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serve_app.routing.agreement import Reading
from serve_app.serving.http import UNREADABLE_JSON

EVENTS_PER_BREATH = 32
"""Events that are read at a stretch: about 0.1 ms."""
_STREAM_STARTS = (b"data:", b":", b"event:", b"id:", b"retry:")


class UnreadableAnswerError(Exception):
    """The body is no answer of the API, or holds no choice."""


class ErrorInStreamError(Exception):
    """The stream was begun with status 200 and ended in an error event."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _Message(msgspec.Struct):
    """A whole message, or what a stream adds to it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Body)
_EMPTY = _Message()


def read_answer(body: bytes, breathe: Callable[[], object] = lambda: None) -> Reading:
    """What the answer says; `breathe` is called now and then, for who must not be held up long.

    Raises UnreadableAnswerError, ErrorInStreamError.
    """
    is_stream = body.startswith(_STREAM_STARTS)
    payloads = _payloads(body) if is_stream else iter((body,))
    written: dict[int, _Written] = {}
    completion_tokens = None
    for count, payload in enumerate(payloads, start=1):
        event = _decoded(payload)
        if event.error is not None:
            raise ErrorInStreamError(msgspec.json.encode(event.error).decode())
        for place, choice in enumerate(event.choices or ()):
            # In a whole body several tool calls or choices may leave out the index of their place.
            index = choice.index if is_stream or choice.index else place
            into = written.get(index)
            if into is None:
                into = written[index] = _Written()
            into.take(choice, is_stream)
        if event.usage is not None and event.usage.completion_tokens is not None:
            completion_tokens = event.usage.completion_tokens
        if count % EVENTS_PER_BREATH == 0:
            breathe()
    if not written:
        raise UnreadableAnswerError("it has no choice")
    return _reading([written[index] for index in sorted(written)], completion_tokens)


def _payloads(body: bytes) -> Iterator[bytes]:
    """Payload of each `data:` line but the end mark; OpenAI servers send one for each event."""
    for line in body.split(b"\n"):
        if line.startswith(b"data:") and (payload := line[5:].strip()) and payload != b"[DONE]":
            yield payload


def _decoded(payload: bytes) -> _Body:
    try:
        return _DECODER.decode(payload)
    except UNREADABLE_JSON as error:
        raise UnreadableAnswerError(str(error)) from None


@dataclass(slots=True)
class _Written:
    """One choice, as it is written."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    tells_tokens: bool = True
    finish_reason: str | None = None

    def take(self, choice: _Choice, is_stream: bool) -> None:
        said = choice.delta or choice.message or _EMPTY
        if text := choice.text or said.content or said.refusal:
            self.content.append(text)
        if thought := said.reasoning or said.reasoning_content:
            self.reasoning.append(thought)
        for place, call in enumerate(said.tool_calls or ()):
            self._take_call(call.index if is_stream else place, call.function or _Function())
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason
        if choice.token_ids is not None:
            self.token_ids += choice.token_ids
        elif text or thought or said.tool_calls:
            self.tells_tokens = False

    def _take_call(self, index: int, function: _Function) -> None:
        parts = self.calls.setdefault(index, [])
        if function.name:
            parts.append(f"{function.name}(")
        if function.arguments:
            parts.append(function.arguments)

    def text(self) -> str:
        calls = ["".join(self.calls[index]) + ")" for index in sorted(self.calls)]
        parts = ["".join(self.reasoning), "".join(self.content), *calls]
        return "\n".join(part for part in parts if part)


def _reading(choices: Iterable[_Written], completion_tokens: int | None) -> Reading:
    every = list(choices)
    reasons = [each.finish_reason for each in every]
    ids = tuple(token for each in every for token in each.token_ids)
    tells = bool(ids) and all(each.tells_tokens for each in every)
    return Reading(
        text="\n".join(each.text() for each in every),
        finish_reason=",".join(map(str, reasons)) if None not in reasons else None,
        token_ids=ids if tells else None,
        completion_tokens=completion_tokens,
    )
