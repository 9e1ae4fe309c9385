"""Send one request to a variant and pass its answer's bytes on, unparsed."""

from dataclasses import dataclass

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


class VariantBusyError(Exception):
    """The variant, or the ingress before it, cannot take the request now; another may."""


@dataclass(frozen=True)
class Relay:
    """The way from this router replica to the variants, over this node's ingress."""

    pool: UpstreamPool
    authority: str
    token: str

    async def ask(self, variant: str, scope: Scope, body: bytes) -> UpstreamConnection:
        """Send the client's request to a variant and wait for the head of its answer.

        Raises VariantBusyError when the variant did not take the request. The caller owns the
        connection that is returned.
        """
        path = f"/variants/{variant}{scope['path']}"
        query = scope.get("query_string", b"")
        head = [
            f"{scope['method']} {path}{'?' if query else ''}{query.decode('latin-1')} HTTP/1.1",
            f"host: {self.authority}",
            f"{INTERNAL_TOKEN_HEADER.decode()}: {self.token}",
            f"content-length: {len(body)}",
        ]
        head += [
            f"{name.decode('latin-1')}: {value.decode('latin-1')}"
            for name, value in scope["headers"]
            if name not in _NOT_SENT_ON
        ]
        request = "\r\n".join([*head, "", ""]).encode("latin-1") + body
        try:
            answer = await self.pool.request(request)
        except UpstreamUnreachableError as error:
            raise VariantBusyError(str(error)) from error
        if header(answer.headers, VARIANT_HEADER) is None:
            answer.close()
            raise VariantBusyError(f"the ingress has no replica for it (status {answer.status})")
        if answer.status in _BUSY:
            answer.close()
            raise VariantBusyError(f"it answered {answer.status}")
        return answer

    async def pass_on(
        self, answer: UpstreamConnection, send: Send, variant: str, reason: RouteReason
    ) -> bool:
        """Pass an answer to the client as it comes. Returns False if it broke off.

        A stream that breaks off ends in an OpenAI-shaped error event, never in silence; any other
        answer is cut, since its announced length can no longer be kept.
        """
        headers: Headers = [pair for pair in answer.headers if pair[0] not in _NOT_PASSED_BACK]
        is_stream = (header(headers, b"content-type") or "").startswith("text/event-stream")
        headers.append((VARIANT_HEADER, variant.encode()))
        headers.append((REASON_HEADER, reason.encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        try:
            while chunk := await answer.read():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
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
