"""Raw ASGI in the few shapes that we need: headers, whole bodies, OpenAI-shaped errors."""

from collections.abc import Iterable

import msgspec

from serve_app.domain.errors import BodyTooLargeError, CallerError, QuantileError
from serve_app.engines.engine import Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

INTERNAL_TOKEN_HEADER = b"x-quantile-internal"
VARIANT_HEADER = b"x-variant"
REASON_HEADER = b"x-route-reason"
REQUEST_ID_HEADER = b"x-request-id"
SESSION_HEADER = b"x-session-id"
CARD_PATH = "/quantile/card"

UNREADABLE_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON, no UTF-8, or nested without end."""

_DRAIN_FACTOR = 8


class ClientGoneError(Exception):
    """The client closed its connection; there is nobody to answer."""


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first value of a header (`name` in lower case), or None."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def route_path(scope: Scope) -> str:
    """The path below the application's own prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The whole body of a request.

    Raises BodyTooLargeError above the limit, after taking in (and forgetting) a bounded part of the
    rest, so that an honest client is listening when the answer comes; ClientGoneError when the
    client left before the body's end.
    """
    declared = header(scope["headers"], b"content-length")
    too_large = declared is not None and declared.isdecimal() and int(declared) > limit_bytes
    chunks: list[bytes] = []
    size = 0
    while True:
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
        if not message.get("more_body", False) or size > _DRAIN_FACTOR * limit_bytes:
            break
    if too_large:
        raise BodyTooLargeError(
            f"the body has {declared or f'more than {limit_bytes}'} bytes, the router takes "
            f"{limit_bytes}; shorten the prompt or raise max_body_bytes"
        )
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
    """Answer with an error in OpenAI's shape."""
    kind = "invalid_request_error" if isinstance(error, CallerError) else "server_error"
    body = {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}
    if error.http_status == 503:
        extra = [*(extra or ()), (b"retry-after", b"1")]
    await send_json(send, error.http_status, body, extra)


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer the ASGI lifespan of an application that has nothing to do at its start and end."""
    while True:
        message = await receive()
        kind = message["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
