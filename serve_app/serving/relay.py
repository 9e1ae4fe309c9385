"""Send one request to a variant, and tell its answer from what stands in its way."""

import math
import urllib.parse
from typing import Protocol

from serve_app.engines.engine import Scope
from serve_app.serving.http import (
    ENGINE_HEADER,
    INTERNAL_TOKEN_HEADER,
    OWN_PREFIX,
    REASON_HEADER,
    SHADOW_HEADER,
    SHADOW_KEY,
    TIMEOUT_HEADER,
    VARIANT_HEADER,
    Headers,
    header,
)
from serve_app.serving.upstream import (
    Sink,
    UpstreamConnection,
    UpstreamPool,
    UpstreamUnreachableError,
)

HOP_BY_HOP = frozenset(
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
_NOT_SENT_ON = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"accept-encoding",
    b"authorization",
    VARIANT_HEADER,
    REASON_HEADER,
    TIMEOUT_HEADER,
    # Serve's own: a client must not set a variant's limits, nor let it work on when it has left.
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}
_FULL = frozenset({408, 429, 503})  # from Serve itself: its back-pressure, or its time limit


class Answer(Protocol):
    """An answer whose head has come. Read it to the end and `release()` it, or `close()` it."""

    status: int
    headers: Headers

    @property
    def held_back(self) -> bool:
        """Whether `hand_on` waits for its sink, not for the variant."""

    async def begun(self) -> None:
        """Wait for the first bytes of the body, or its end. Raises UpstreamTruncatedError."""

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

    async def ask(
        self, variant: str, scope: Scope, body: bytes, timeout_s: float | None = None
    ) -> Answer:
        """Send the client's request to a variant and wait for the head of its answer.

        The variant is told to give up after `timeout_s`. Raises VariantBusyError when the variant
        did not take the request. The caller owns the answer that is returned.
        """

    def close(self) -> None:
        """Drop what is kept between requests."""


class VariantBusyError(Exception):
    """The variant, or the ingress before it, cannot take the request now; another may."""


class VariantDownError(VariantBusyError):
    """There is nothing that could take it: no replica, no application, or no answer."""


class ReplicaLostError(VariantDownError):
    """The replica that had the request is gone, or its engine is: another may be there."""


class IngressDownError(VariantDownError):
    """This node's ingress did not answer, which says nothing of the variant."""


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

    async def ask(
        self, variant: str, scope: Scope, body: bytes, timeout_s: float | None = None
    ) -> UpstreamConnection:
        """As `Relay.ask`."""
        path = f"/variants/{variant}{scope['path']}"
        query = scope.get("query_string", b"")
        head = [
            f"{scope['method']} {path}{'?' if query else ''}{query.decode('latin-1')} HTTP/1.1",
            f"host: {self._authority}",
            f"{INTERNAL_TOKEN_HEADER.decode()}: {self._token}",
            f"content-length: {len(body)}",
        ]
        if timeout_s is not None:
            head.append(f"{TIMEOUT_HEADER.decode()}: {max(1, math.ceil(timeout_s * 1000))}")
        if scope.get(SHADOW_KEY):
            head.append(f"{SHADOW_HEADER.decode()}: 1")
        head += [
            f"{name.decode('latin-1')}: {value.decode('latin-1')}"
            for name, value in scope["headers"]
            if name not in _NOT_SENT_ON and not name.startswith(OWN_PREFIX)
        ]
        request = "\r\n".join([*head, "", ""]).encode("latin-1") + body
        try:
            answer = await self._pool.request(request)
        except UpstreamUnreachableError as error:
            raise IngressDownError(str(error)) from error
        fault = _fault(answer)
        if fault is not None:
            answer.close()
            raise fault
        return answer


def _fault(answer: UpstreamConnection) -> VariantBusyError | None:
    """Why this is no answer to the request, or None if it is one.

    HAProxy turns its own 502, 503 and 504 into 500, so a replica that died with the request and a
    variant that has none look alike.
    """
    status = answer.status
    if header(answer.headers, VARIANT_HEADER) is None:
        if status in _FULL:
            return VariantBusyError(f"its replicas are full (status {status})")
        if status == 500:
            return ReplicaLostError("its replica was lost, or it has none (status 500)")
        return VariantDownError(f"the ingress has no replica for it (status {status})")
    if header(answer.headers, ENGINE_HEADER) == "dead":
        return ReplicaLostError(f"its engine is dead (status {status})")
    if status == 503:
        return VariantBusyError("its engine is full: it answered 503")
    return None
