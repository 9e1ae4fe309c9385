"""Raw ASGI in the few shapes that we need: headers, whole bodies, OpenAI-shaped errors."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from serve_app.domain.errors import (
    BodyTooLargeError,
    MalformedRequestError,
    QuantileError,
    SlowBodyError,
)
from serve_app.engines.engine import Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

INTERNAL_TOKEN_HEADER = b"x-quantile-internal"
VARIANT_HEADER = b"x-variant"
REASON_HEADER = b"x-route-reason"
REQUEST_ID_HEADER = b"x-request-id"
TIMEOUT_HEADER = b"x-request-timeout-ms"
ENGINE_HEADER = b"x-quantile-engine"
"""`dead` on answers of a variant whose engine is."""
OWN_PREFIX = b"x-quantile-"
"""Names between the router and its variants: a client's are not sent on, a variant's not back."""
SESSION_HEADER = b"x-session-id"
CARD_PATH = "/quantile/card"
SHADOW_HEADER = b"x-quantile-shadow"
"""Marks a mirrored request: a router that gets one does not mirror it again."""
SHADOW_KEY = "quantile.shadow"
"""Set in the scope of a request that is sent on as a mirrored one; no client can set it."""

UNREADABLE_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON, no UTF-8, or nested without end."""

MAX_TIMEOUT_MS = 24 * 3600 * 1000
_DRAIN_FACTOR = 8


class ClientGoneError(Exception):
    """The client closed its connection; there is nobody to answer."""


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first value of a header (`name` in lower case), or None."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def asked_timeout_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """How long the request may take, by its `x-request-timeout-ms`; None where it says nothing.

    Raises MalformedRequestError for what is no time.
    """
    asked = header(headers, TIMEOUT_HEADER)
    if asked is None:
        return None
    is_number = asked.isascii() and asked.isdecimal() and len(asked) <= len(str(MAX_TIMEOUT_MS))
    if not is_number or not 0 < int(asked) <= MAX_TIMEOUT_MS:
        raise MalformedRequestError(
            f"{TIMEOUT_HEADER.decode()} is a whole number of milliseconds from 1 to "
            f"{MAX_TIMEOUT_MS}, have {asked[:40]!r}"
        )
    return int(asked) / 1000


def route_path(scope: Scope) -> str:
    """The path below the application's own prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


@dataclass(frozen=True, slots=True)
class BodyTimes:
    """How long a body may take to come, in seconds; None is without end."""

    piece_s: float | None = None
    """Between two pieces, and before the first."""
    whole_s: float | None = None
    """From the first look at it to its end."""


async def read_body(
    scope: Scope, receive: Receive, limit_bytes: int, times: BodyTimes = BodyTimes()
) -> bytes:
    """The whole body of a request.

    Raises BodyTooLargeError above the limit, after taking in (and forgetting) a bounded part of the
    rest, so that an honest client is listening when the answer comes; SlowBodyError when it takes
    longer than `times`; ClientGoneError when the client left before the body's end.
    """
    try:
        return await _whole_body(scope, receive, limit_bytes, times)
    except TimeoutError:
        raise SlowBodyError(
            f"the body did not come to its end: the router waits {_told(times.piece_s)} for each "
            f"piece and {_told(times.whole_s)} for all; send it faster, or raise the limits of "
            "admission.body"
        ) from None


async def _whole_body(scope: Scope, receive: Receive, limit_bytes: int, times: BodyTimes) -> bytes:
    declared = header(scope["headers"], b"content-length")
    too_large = declared is not None and declared.isdecimal() and int(declared) > limit_bytes
    chunks: list[bytes] = []
    size = 0
    is_whole = False
    try:
        async with _Deadline(times) as deadline:
            while not is_whole and size <= _DRAIN_FACTOR * limit_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                size += len(chunk)
                too_large = too_large or size > limit_bytes
                if too_large:
                    chunks.clear()
                else:
                    chunks.append(chunk)
                is_whole = not message.get("more_body", False)
                if not is_whole:
                    deadline.again()
    except TimeoutError:
        if not too_large:
            raise
    if too_large:
        error = BodyTooLargeError(
            f"the body has {declared or f'more than {limit_bytes}'} bytes, the router takes "
            f"{limit_bytes}; shorten the prompt or raise max_body_bytes"
        )
        if not is_whole:  # its rest would be read as the next request's
            error.response_headers = ((b"connection", b"close"),)
        raise error
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class _Deadline:
    """The two times of a body as one timeout. Raises TimeoutError at its end."""

    __slots__ = ("_end_s", "_loop", "_piece_s", "_timeout")

    def __init__(self, times: BodyTimes) -> None:
        self._loop = asyncio.get_running_loop()
        self._piece_s = times.piece_s
        self._end_s = None if times.whole_s is None else self._loop.time() + times.whole_s
        self._timeout = asyncio.timeout_at(self._next_s())

    def _next_s(self) -> float | None:
        if self._piece_s is None:
            return self._end_s
        piece_end_s = self._loop.time() + self._piece_s
        return piece_end_s if self._end_s is None else min(piece_end_s, self._end_s)

    def again(self) -> None:
        """A piece has come."""
        if self._piece_s is not None:
            self._timeout.reschedule(self._next_s())

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._timeout.__aexit__(*error)


def _told(seconds: float | None) -> str:
    return "without end" if seconds is None else f"{seconds:g} s"


async def send_json(send: Send, status: int, body: object, extra: Headers | None = None) -> None:
    """Answer with `body` as JSON."""
    await send_bytes(send, status, msgspec.json.encode(body), b"application/json", extra)


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: bytes, extra: Headers | None = None
) -> None:
    """Answer with a whole body."""
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        *(extra or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: QuantileError, extra: Headers | None = None) -> None:
    """Answer with an error in OpenAI's shape, and with the headers that belong to it."""
    body = {"error": {"message": str(error), "type": error.kind, "param": None, "code": error.code}}
    extra = [*(extra or ()), *error.response_headers]
    if error.retry_after_s is not None:  # RFC 9110, section 10.2.3: whole seconds
        seconds = max(1, math.ceil(error.retry_after_s))
        extra.append((b"retry-after", str(seconds).encode()))
    await send_json(send, error.http_status, body, extra)


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer the ASGI lifespan of an application that has nothing to do at its start and end."""
    while True:
        message = await receive()
        kind = message["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
