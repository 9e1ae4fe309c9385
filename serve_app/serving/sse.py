"""Server-sent events as bytes: where one ends, and the one that ends a stream that failed.

An event ends at an empty line (WHATWG HTML, section 9.2.6). Of an event that was cut in two a
client would parse the first half, and OpenAI's client would raise a JSONDecodeError in place of an
APIError. So only whole events are handed on.
"""

import re

import msgspec

EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
_RESPONSES_PATH = "/v1/responses"
MAX_HELD_BYTES = 1024 * 1024
"""Of one event; a longer one is handed on in pieces."""


class WholeEvents:
    """Cuts the pieces of a stream where events end. A piece that ends with one passes uncopied."""

    __slots__ = ("held", "last")

    def __init__(self) -> None:
        self.last = b""
        """The bytes handed on last."""
        self.held = b""
        """The beginning of an event that is not whole yet."""

    def take(self, piece: bytes) -> bytes:
        """What can be handed on now that `piece` has come; empty if no event is whole yet."""
        if not self.held and piece.endswith(EVENT_ENDS):
            self.last = piece
            return piece
        return self._cut(self.held + piece)

    def rest(self) -> bytes:
        """What was held back when the stream ended in good order."""
        rest, self.held = self.held, b""
        return rest

    def fresh_line(self) -> bytes:
        """What must stand before an event of our own."""
        return b"\n\n" if self.last and not self.last.endswith(EVENT_ENDS) else b""

    def _cut(self, data: bytes) -> bytes:
        end = max((data.rfind(mark) + len(mark) for mark in EVENT_ENDS if mark in data), default=0)
        if len(data) - end > MAX_HELD_BYTES:
            end = len(data)
        whole, self.held = data[:end], data[end:]
        self.last = whole or self.last
        return whole


def is_stream(content_type: str | None) -> bool:
    """Whether an answer of this type is a stream of events."""
    return content_type is not None and content_type.lower().startswith("text/event-stream")


def error_event(path: str, code: str, message: str, last: bytes = b"") -> bytes:
    """The event that ends a stream of `path` in an error, as OpenAI shapes it for that API.

    `last` are the bytes that came before it: events of the Responses API are numbered. OpenAI's
    client raises APIError for whatever has an `error`; the Responses API's own error event has its
    fields beside it.
    """
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    if path != _RESPONSES_PATH:
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
    numbers = _SEQUENCE.findall(last)
    event = {
        "type": "error",
        "code": code,
        "message": message,
        "param": None,
        "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
        "error": error,
    }
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
