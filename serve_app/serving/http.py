"""Raw ASGI in the few shapes that we need: headers, whole bodies, OpenAI-shaped errors."""

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from serve_app.domain.errors import (
    BodyTooLargeError,
    MalformedRequestError,
    MethodNotAllowedError,
    QuantileError,
    SlowBodyError,
)
from serve_app.domain.text import shown
from serve_app.engines.engine import Message, Receive, Scope, Send
from serve_app.serving.body_times import ANY_TIME, BodyDeadline, BodyTimes

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
_LENGTH_DIGITS = 18
"""Of a length that is worth reading as a number."""


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


def require_method(method: str, allowed: str, path: str) -> None:
    """Raise MethodNotAllowedError if `path` is asked by another method than the one it takes."""
    if method != allowed:
        raise MethodNotAllowedError(f"{shown(path)} takes {allowed}, not {shown(method)}")


def route_path(scope: Scope) -> str:
    """The path below the application's own prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def read_body(
    scope: Scope, receive: Receive, limit_bytes: int, times: BodyTimes = ANY_TIME
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
            f"the body did not come to its end: the router waits {times}; send it faster, or raise "
            "the limits of admission.body"
        ) from None


async def _whole_body(scope: Scope, receive: Receive, limit_bytes: int, times: BodyTimes) -> bytes:
    declared = header(scope["headers"], b"content-length") or ""
    is_large = declared.isdecimal() and (
        len(declared) > _LENGTH_DIGITS or int(declared) > limit_bytes
    )
    first, rest = b"", bytearray()
    size = 0
    is_whole = False
    try:
        async with BodyDeadline(times) as deadline:
            while not is_whole and size <= _DRAIN_FACTOR * limit_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                size += len(chunk)
                is_large = is_large or size > limit_bytes
                if is_large:
                    first, rest = b"", bytearray()
                elif not first:
                    first = chunk
                else:  # joined at once: a list of a million pieces is large, whatever they say
                    rest += chunk
                is_whole = not message.get("more_body", False)
                if not is_whole:
                    deadline.again()
    except TimeoutError:
        if not is_large:
            raise
    if is_large:
        raise _too_large(declared, limit_bytes, is_whole)
    return first + rest if rest else first


def _too_large(declared: str, limit_bytes: int, is_whole: bool) -> BodyTooLargeError:
    told = declared if 0 < len(declared) <= _LENGTH_DIGITS else f"more than {limit_bytes}"
    error = BodyTooLargeError(
        f"the body has {told} bytes, the router takes {limit_bytes}; shorten the prompt or raise "
        "max_body_bytes"
    )
    if not is_whole:  # its rest would be read as the next request's
        error.response_headers = (CLOSES,)
    return error


_LINGER_S = 2.0
_LINGER_BYTES = 4 * 1024 * 1024
CLOSES = (b"connection", b"close")
"""The response header of an error that was raised before its request was whole."""


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


async def send_error_and_linger(
    receive: Receive, send: Send, error: QuantileError, extra: Headers | None = None
) -> None:
    """As `send_error`, and take in for a moment what the client still sends.

    A connection that is closed while bytes come is reset, and the reset takes the answer with it.
    """

    async def hold(message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        await send({**message, "more_body": True} if is_body else message)

    await send_error(hold, error, extra)
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            left = _LINGER_BYTES
            while left > 0 and (message := await receive()).get("more_body", False):
                left -= len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer the ASGI lifespan of an application that has nothing to do at its start and end."""
    while True:
        message = await receive()
        kind = message["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
