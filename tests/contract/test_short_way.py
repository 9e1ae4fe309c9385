"""The middle of a stream goes past uvicorn's `send`: the same bytes, at the client's pace."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from ray.serve._private.http_util import RequestIdMiddleware

from serve_app.serving.short_way import short_way
from tests.fakes.served import served

STREAM = [(b"content-type", b"text/event-stream")]
PIECES = [b"data: one\n\n", b"data: " + 300 * b"x" + b"\n\n", b"data: [DONE]\n\n"]
MUCH = b"data: " + 65536 * b"x" + b"\n\n"


class Streams:
    """Sends a head and pieces, by the short way where there is one; notes which went so."""

    def __init__(self, headers=STREAM, *, is_short: bool = True, pieces=PIECES) -> None:
        self.headers, self.is_short, self.pieces = headers, is_short, pieces
        self.has_way: bool | None = None
        self.short: list[bool] = []
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        write = short_way(send) if self.is_short else None
        self.has_way = write is not None
        for piece in self.pieces:
            self.short.append(write is not None and write(piece))
            if not self.short[-1]:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        with suppress(Exception):  # a body shorter than its announced length
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.ended.set()


async def ask(address: Any, method: str = "GET") -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"{method} / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_the_bytes_are_the_long_ways():
    said = []
    plain = {"date_header": False, "server_header": False}
    for is_short in (True, False):
        app = Streams(is_short=is_short)
        async with served(app, http="httptools", **plain) as address:
            said.append(await ask(address))
        assert app.short == [is_short] * len(PIECES)
    assert said[0] == said[1]
    assert said[0].endswith(b"0\r\n\r\n")


async def test_it_leads_through_the_request_ids_of_serve():
    app = Streams()
    async with served(RequestIdMiddleware(app), http="httptools") as address:
        assert b"x-request-id" in (await ask(address)).lower()
    assert app.short == [True] * len(PIECES)


def wrapped(app: Any) -> Any:
    """A middleware of somebody's, which might do anything to a body."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def changed(message: Any) -> None:
            await send(message)

        await app(scope, receive, changed)

    return middleware


@pytest.mark.parametrize(
    ("method", "headers", "around", "http"),
    [
        ("GET", STREAM, wrapped, "httptools"),
        ("GET", [*STREAM, (b"content-length", b"400")], None, "httptools"),
        ("HEAD", STREAM, None, "httptools"),
        ("GET", STREAM, None, "h11"),
    ],
    ids=["a middleware", "a length", "HEAD", "another server"],
)
async def test_where_it_would_be_wrong_there_is_none(
    method: str, headers: Any, around: Callable[[Any], Any] | None, http: Any
):
    app = Streams(headers)
    async with served(around(app) if around else app, http=http) as address:
        answer = await ask(address, method)
    assert app.has_way is False
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert (PIECES[0] in answer) == (method == "GET")


async def test_a_client_that_does_not_read_is_waited_for():
    app = Streams(pieces=200 * [MUCH])
    async with served(app, http="httptools") as address:
        reader, writer = await asyncio.open_connection(*address, limit=2**16)
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        await asyncio.sleep(0.2)
        assert not app.ended.is_set()
        assert 0 < len(app.short) < len(app.pieces)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert answer.count(MUCH) == len(app.pieces)
    assert True in app.short and False in app.short


async def test_a_client_that_is_gone_fails_nothing():
    app = Streams(pieces=200 * [MUCH])
    async with served(app, http="httptools") as address:
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.wait_for(app.ended.wait(), 5)
    assert app.short[-1] is False
