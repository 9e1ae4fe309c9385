"""What the router says to a variant, and what it makes of the answer, on real sockets."""

import pytest

from serve_app.domain.traffic import RouteReason
from serve_app.serving.limits import AnswerLimits, Ending
from serve_app.serving.passing import pass_on
from serve_app.serving.relay import (
    IngressDownError,
    IngressRelay,
    ReplicaLostError,
    VariantBusyError,
    VariantDownError,
)
from tests.fakes.asgi import Exchange
from tests.fakes.raw_server import Peer, RawServer, answer, chunked

TOKEN = "0123456789abcdef"
BODY = b'{"model": "m"}'
MARK = b"x-variant: awq"
DEAD = b"x-quantile-engine: dead"


async def passed_on(received, exchange: Exchange, reason: RouteReason) -> Ending:
    limit = AnswerLimits().begin()
    return await pass_on(received, exchange.send, "awq", reason, [].append, limit)


def said(request: bytes) -> tuple[bytes, list[tuple[str, str]], bytes]:
    """Request line, headers in order, body."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    pairs = [field.decode("latin-1").split(": ", 1) for field in fields]
    return line, [(name, value) for name, value in pairs], body


def client_scope(*headers: tuple[str, str], **more) -> dict:
    return Exchange(None, "POST", "/v1/completions", headers=headers, **more).scope


class Ingress:
    """A scripted ingress, and a relay that goes through it."""

    def __init__(self, *pieces: bytes) -> None:
        async def talk(peer: Peer) -> None:
            while True:
                await peer.request()
                await peer.say(*pieces)

        self.server = RawServer(talk)

    async def __aenter__(self):
        await self.server.__aenter__()
        self.relay = IngressRelay(f"http://localhost:{self.server.port}", TOKEN)
        return self

    async def __aexit__(self, *exception) -> None:
        self.relay.close()
        await self.server.__aexit__(*exception)


async def test_the_request_is_the_clients_with_our_token_and_path():
    async with Ingress(answer(b"ok", MARK)) as ingress:
        scope = client_scope(
            ("content-type", "application/json"),
            ("x-request-id", "r-1"),
            ("traceparent", "00-1-2-01"),
            ("x-note", "caf\xe9"),
            query_string=b"a=1&b=%20c",
        )
        received = await ingress.relay.ask("awq", scope, BODY)
        assert (received.status, await received.read(), await received.read()) == (200, b"ok", b"")
        received.release()
        line, headers, body = said(ingress.server.requests[0])
        assert line == b"POST /variants/awq/v1/completions?a=1&b=%20c HTTP/1.1"
        assert headers == [
            ("host", f"localhost:{ingress.server.port}"),
            ("x-quantile-internal", TOKEN),
            ("content-length", "14"),
            ("content-type", "application/json"),
            ("x-request-id", "r-1"),
            ("traceparent", "00-1-2-01"),
            ("x-note", "caf\xe9"),
        ]
        assert body == BODY


async def test_what_a_client_must_not_say_is_not_passed_on():
    hostile = [
        ("host", "evil"),
        ("x-quantile-internal", "guess"),
        ("x-quantile-internal", "guess again"),
        ("x-quantile-engine", "dead"),
        ("x-quantile-anything", "1"),
        ("x-request-timeout-ms", "1"),
        ("x-request-timeout-seconds", "0.001"),
        ("x-request-disconnect-disabled", "?1"),
        ("x-variant", "bf16"),
        ("x-route-reason", "pinned"),
        ("authorization", "Bearer sk-secret"),
        ("content-length", "999"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("keep-alive", "timeout=1"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("accept-encoding", "gzip"),
        ("proxy-authorization", "Basic x"),
    ]
    async with Ingress(answer(b"", MARK)) as ingress:
        (await ingress.relay.ask("awq", client_scope(*hostile), BODY)).release()
        _, headers, body = said(ingress.server.requests[0])
        assert [name for name, _ in headers] == ["host", "x-quantile-internal", "content-length"]
        assert dict(headers)["x-quantile-internal"] == TOKEN
        assert body == BODY


@pytest.mark.parametrize(
    ("pieces", "said", "kind"),
    [
        ([answer(b"", MARK, DEAD, status=b"503 Oh")], "engine is dead", ReplicaLostError),
        ([answer(b"", MARK, status=b"503 Oh")], "engine is full", VariantBusyError),
        ([answer(b"", status=b"503 Oh")], "replicas are full .status 503", VariantBusyError),
        ([answer(b"", status=b"429 Oh")], "replicas are full .status 429", VariantBusyError),
        ([answer(b"", status=b"408 Oh")], "replicas are full .status 408", VariantBusyError),
        ([answer(b"", status=b"500 Oh")], "replica was lost", ReplicaLostError),
        ([answer(b"Path '/variants/awq'", status=b"404 Oh")], "status 404", VariantDownError),
        ([answer(b"somebody else's")], "no replica", VariantDownError),
        ([answer(b"somebody else's", DEAD)], "no replica", VariantDownError),
        ([b"nonsense\r\n\r\n"], "before any answer", IngressDownError),
    ],
)
async def test_who_did_not_take_the_request_and_why(pieces, said, kind):
    """Full is not down: a router that took it so would push the overload on to the others."""
    async with Ingress(*pieces) as ingress:
        with pytest.raises(VariantBusyError, match=said) as caught:
            await ingress.relay.ask("awq", client_scope(), BODY)
        assert type(caught.value) is kind


async def test_the_variant_is_told_how_long_it_may_take():
    async with Ingress(answer(b"", MARK)) as ingress:
        for timeout_s in (1.5, 0.0001):
            (await ingress.relay.ask("awq", client_scope(), BODY, timeout_s)).release()
        told = [dict(said(each)[1])["x-request-timeout-ms"] for each in ingress.server.requests]
        assert told == ["1500", "1"]


async def test_nobody_listens():
    async with RawServer(lambda peer: peer.request()) as server:
        port = server.port
    relay = IngressRelay(f"http://127.0.0.1:{port}", TOKEN)
    with pytest.raises(IngressDownError, match="cannot connect"):
        await relay.ask("awq", client_scope(), BODY)


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"404 Not Found", b"500 Oops"])
async def test_a_variants_own_answer_is_passed_back_without_the_hops_headers(status):
    own = [b"content-type: text/x", b"x-note: caf\xe9", b"set-cookie: a", b"set-cookie: b"]
    of_the_hop = [
        MARK,
        b"x-quantile-note: own",
        b"x-route-reason: guess",
        b"date: now",
        b"server: uvicorn",
    ]
    hop_by_hop = [b"connection: keep-alive", b"keep-alive: 5", b"x-request-id: replica's"]
    whole = answer(b"body", *own, *of_the_hop, *hop_by_hop, status=status)
    async with Ingress(whole) as ingress:
        received = await ingress.relay.ask("awq", client_scope(), BODY)
        exchange = Exchange(None, "POST", "/")
        assert await passed_on(received, exchange, RouteReason.STICKY) is Ending.WHOLE
        received.release()
        assert exchange.status == int(status[:3])
        assert exchange.body == b"body"
        assert exchange.messages[0]["headers"] == [
            (b"content-length", b"4"),
            (b"content-type", b"text/x"),
            (b"x-note", b"caf\xe9"),
            (b"set-cookie", b"a"),
            (b"set-cookie", b"b"),
            (b"x-variant", b"awq"),
            (b"x-route-reason", b"sticky"),
        ]


async def test_a_stream_is_passed_back_byte_by_byte_and_its_connection_kept():
    events = [b"data: 1\n\n", b"data: [DONE]\n\n"]
    head, *rest = chunked(*events)
    head = head.replace(
        b"\r\n\r\n", b"\r\ncontent-type: text/event-stream\r\n" + MARK + b"\r\n\r\n"
    )
    async with Ingress(head, *rest) as ingress:
        for _ in range(2):
            received = await ingress.relay.ask("awq", client_scope(), BODY)
            exchange = Exchange(None, "POST", "/")
            assert await passed_on(received, exchange, RouteReason.PINNED) is Ending.WHOLE
            received.release()
            assert exchange.body == b"".join(events)
            assert "transfer-encoding" not in exchange.headers
        assert ingress.server.n_connections == 1
