"""Send one request to a variant and pass its answer's bytes on, unparsed."""

import urllib.parse
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from serve_app.domain.traffic import RouteReason
from serve_app.engines.engine import Scope, Send
from serve_app.serving.http import (
    INTERNAL_TOKEN_HEADER,
    REASON_HEADER,
    REQUEST_ID_HEADER,
    VARIANT_HEADER,
    Headers,
    header,
)
from serve_app.serving.upstream import (
    Sink,
    UpstreamConnection,
    UpstreamPool,
    UpstreamTruncatedError,
    UpstreamUnreachableError,
)

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
    }
    | {b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
# What the client may not say, or what is between it and the router only.
_NOT_SENT_ON = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"accept-encoding",
    b"authorization",
    INTERNAL_TOKEN_HEADER,
    VARIANT_HEADER,
    REASON_HEADER,
}
# What the router's own server adds, or the router itself.
_NOT_PASSED_BACK = _HOP_BY_HOP | {
    b"date",
    b"server",
    REQUEST_ID_HEADER,
    VARIANT_HEADER,
    REASON_HEADER,
}
_BUSY = frozenset({502, 503})
_FULL = frozenset({408, 429, 503})  # from Serve itself: its back-pressure, or its time limit


class Answer(Protocol):
    """An answer whose head has come. Read it to the end and `release()` it, or `close()` it."""

    status: int
    headers: Headers

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end. Raises UpstreamTruncatedError."""

    async def hand_on(self, sink: Sink) -> None:
        """Give all of the body to `sink` as it comes. Raises UpstreamTruncatedError."""

    def release(self) -> None:
        """The body has been read."""

    def close(self) -> None:
        """Nobody wants the rest: the variant should stop."""


class Relay(Protocol):
    """A way from this router replica to the variants."""

    async def ask(self, variant: str, scope: Scope, body: bytes) -> Answer:
        """Send the client's request to a variant and wait for the head of its answer.

        Raises VariantBusyError when the variant did not take the request. The caller owns the
        answer that is returned.
        """

    def close(self) -> None:
        """Drop what is kept between requests."""


class VariantBusyError(Exception):
    """The variant, or the ingress before it, cannot take the request now; another may."""


class VariantDownError(VariantBusyError):
    """There is nothing that could take it: no replica, no application, or a dead engine."""


class IngressRelay:
    """The way over this node's own Serve ingress: HTTP to `/variants/<name>/...`.

    Make it in the loop that serves requests.
    """

    def __init__(self, ingress_url: str, token: str, connect_timeout_s: float = 5.0) -> None:
        url = urllib.parse.urlsplit(ingress_url)
        host, port = url.hostname or "127.0.0.1", url.port or 80
        self._pool = UpstreamPool(host, port, connect_timeout_s=connect_timeout_s)
        self._authority = url.netloc
        self._token = token

    def close(self) -> None:
        """Close kept connections."""
        self._pool.close()

    async def ask(self, variant: str, scope: Scope, body: bytes) -> UpstreamConnection:
        """As `Relay.ask`."""
        path = f"/variants/{variant}{scope['path']}"
        query = scope.get("query_string", b"")
        head = [
            f"{scope['method']} {path}{'?' if query else ''}{query.decode('latin-1')} HTTP/1.1",
            f"host: {self._authority}",
            f"{INTERNAL_TOKEN_HEADER.decode()}: {self._token}",
            f"content-length: {len(body)}",
        ]
        head += [
            f"{name.decode('latin-1')}: {value.decode('latin-1')}"
            for name, value in scope["headers"]
            if name not in _NOT_SENT_ON
        ]
        request = "\r\n".join([*head, "", ""]).encode("latin-1") + body
        try:
            answer = await self._pool.request(request)
        except UpstreamUnreachableError as error:
            raise VariantDownError(str(error)) from error
        is_variants_own = header(answer.headers, VARIANT_HEADER) is not None
        if is_variants_own and answer.status not in _BUSY:
            return answer
        answer.close()
        if is_variants_own:
            raise VariantDownError(f"it answered {answer.status}")
        if answer.status in _FULL:
            raise VariantBusyError(f"its replicas are full (status {answer.status})")
        raise VariantDownError(f"the ingress has no replica for it (status {answer.status})")


async def pass_on(
    answer: Answer,
    send: Send,
    variant: str,
    reason: RouteReason,
    seen: Callable[[bytes], None],
) -> bool:
    """Pass an answer to the client as it comes, and show `seen` each piece of its body.

    Returns False if it broke off.

    A stream that breaks off ends in an OpenAI-shaped error event, never in silence; any other
    answer is cut, since its announced length can no longer be kept.
    """
    headers: Headers = [pair for pair in answer.headers if pair[0] not in _NOT_PASSED_BACK]
    is_stream = (header(headers, b"content-type") or "").startswith("text/event-stream")
    headers.append((VARIANT_HEADER, variant.encode()))
    headers.append((REASON_HEADER, reason.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})

    def send_piece(piece: bytes) -> Coroutine[Any, Any, None]:
        seen(piece)
        return send({"type": "http.response.body", "body": piece, "more_body": True})

    try:
        await answer.hand_on(send_piece)
    except UpstreamTruncatedError:
        if not is_stream:
            raise
        event = _broken_stream_event(variant)
        await send({"type": "http.response.body", "body": event, "more_body": False})
        return False
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return True


def _broken_stream_event(variant: str) -> bytes:
    message = f"variant {variant!r} broke off in the middle of the answer; send the request again"
    error = {"message": message, "type": "server_error", "param": None, "code": "stream_broken"}
    return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
