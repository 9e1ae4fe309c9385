"""Read a streamed answer from the pieces in which it arrived, after it is over.

The client stamps every piece as it comes from the socket and parses nothing; here events get
the stamp of the piece that completed their line. OpenAI servers send one `data:` line per event.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

Piece = tuple[int, bytes]
"""Monotonic nanoseconds of receipt, and the bytes."""


@dataclass
class StreamReading:
    """What a stream said."""

    token_ns: list[int] = field(default_factory=list)
    """Receipt of each event with non-empty content, reasoning or tool call."""
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    is_done: bool = False
    """`data: [DONE]` was seen."""
    error: str | None = None
    """An error object in the stream, as JSON."""
    malformed: str | None = None
    """Why the first unreadable event could not be read."""

    @property
    def is_complete(self) -> bool:
        """Whether the stream reached its end mark."""
        return self.is_done or (self.finish_reason is not None and self.output_tokens is not None)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_NO_DELTA = _Delta()
_DECODER = msgspec.json.Decoder(_Event)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Not JSON or no event of the API, not UTF-8, nested too deep."""


def data_lines(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Payload of each complete `data:` line, with the stamp of the piece that completed it.

    An empty one is no event, says the SSE standard: some servers keep connections alive so.
    """
    rest = b""
    for stamp_ns, data in pieces:
        lines = (rest + data if rest else data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:") and (payload := line[5:].strip()):
                yield stamp_ns, payload


def read_stream(pieces: Iterable[Piece]) -> StreamReading:
    """Read a whole stream. Never raises: what cannot be read is in `malformed`."""
    reading = StreamReading()
    for stamp_ns, payload in data_lines(pieces):
        if payload == b"[DONE]":
            reading.is_done = True
            continue
        try:
            _take(reading, stamp_ns, _DECODER.decode(payload))
        except _UNREADABLE as error:
            reading.malformed = reading.malformed or str(error)
    return reading


def _take(reading: StreamReading, stamp_ns: int, event: _Event) -> None:
    if event.error is not None:
        reading.error = msgspec.json.encode(event.error).decode()
    if event.usage is not None:
        reading.prompt_tokens = event.usage.prompt_tokens
        reading.output_tokens = event.usage.completion_tokens
    has_token = False
    for choice in event.choices or ():
        reading.finish_reason = choice.finish_reason or reading.finish_reason
        delta = choice.delta or _NO_DELTA
        text = choice.text or delta.content
        if text:
            reading.text.append(text)
        if text or delta.reasoning or delta.reasoning_content or delta.tool_calls:
            has_token = True
    if has_token:
        reading.token_ns.append(stamp_ns)
