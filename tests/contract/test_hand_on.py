"""Handing a body on piece by piece: in order, at the sink's pace, with the sink's errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from serve_app.serving.upstream import UpstreamTruncatedError
from tests.contract.test_upstream import GET, moment, on_every_loop, serving
from tests.fakes.raw_server import Peer, chunked

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Server:
    """Sends what it is told, when it is told."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def talk(self, peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD)
        while (piece := await self.pieces.get()) is not None:
            await peer.say(piece)
        peer.close()

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            _, framed, _ = chunked(piece)
            self.pieces.put_nowait(framed)

    def end(self) -> None:
        self.pieces.put_nowait(END)
        self.pieces.put_nowait(None)


class Sink:
    """Keeps what it is given, and whether a task of its own was woken for it."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.in_a_task: list[bool] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.ended = 0

    async def __call__(self, piece: bytes) -> None:
        try:
            self.in_a_task.append(asyncio.current_task() is not None)
            await self.gate.wait()
            self.seen.append(piece)
        finally:
            self.ended += 1


@asynccontextmanager
async def handing_on(sink) -> AsyncIterator[tuple[Server, asyncio.Task[None]]]:
    """A server that does as it is told, and the task that hands its answer on."""
    server = Server()
    async with serving(server.talk) as (pool, _):
        answer = await pool.request(GET)
        work = asyncio.create_task(answer.hand_on(sink))
        yield server, work
        answer.close()
        server.end()


@on_every_loop
async def test_pieces_arrive_as_they_come_without_waking_the_task():
    sink = Sink()
    async with handing_on(sink) as (server, work):
        for word in (b"one", b"two", b"three"):
            server.say(word)
            await moment()
            assert sink.seen[-1] == word
        server.end()
        await work
    assert sink.seen == [b"one", b"two", b"three"]
    assert not any(sink.in_a_task)


@on_every_loop
async def test_a_sink_that_waits_gets_the_rest_in_order_when_it_goes_on():
    sink = Sink()
    async with handing_on(sink) as (server, work):
        server.say(b"first ")
        await moment()
        sink.gate.clear()
        server.say(b"second ")
        await moment()
        server.say(b"third ")
        await moment()
        server.say(b"fourth")
        await moment()
        assert sink.seen == [b"first "]
        sink.gate.set()
        server.end()
        await work
    assert b"".join(sink.seen) == b"first second third fourth"
    assert sink.ended == len(sink.seen)


@on_every_loop
async def test_bytes_that_come_before_the_woken_task_runs_wait_for_their_turn():
    """libuv reads a busy socket many times before it lets any task run."""
    sink = Sink()
    server = Server()
    async with serving(server.talk) as (pool, _):
        answer = await pool.request(GET)
        work = asyncio.create_task(answer.hand_on(sink))
        await moment()
        sink.gate.clear()
        for word in (b"one ", b"two ", b"three"):
            _, framed, _ = chunked(word)
            answer.data_received(framed)
        assert sink.ended == 0
        sink.gate.set()
        await moment()
        server.end()
        await work
        answer.close()
    assert b"".join(sink.seen) == b"one two three"


@on_every_loop
@pytest.mark.parametrize("waits_first", [False, True])
async def test_the_sinks_error_is_raised(waits_first: bool):
    gate = asyncio.Event()
    n_pieces = 0

    async def sink(piece: bytes) -> None:
        nonlocal n_pieces
        n_pieces += 1
        if n_pieces == 2:
            if waits_first:
                await gate.wait()
            raise ConnectionError("the client is gone")

    async with handing_on(sink) as (server, work):
        for word in (b"one", b"two"):
            server.say(word)
            await moment()
        gate.set()
        with pytest.raises(ConnectionError, match="the client is gone"):
            await work


@on_every_loop
async def test_a_body_that_is_cut_short_gives_what_came_and_then_an_error():
    sink = Sink()
    async with handing_on(sink) as (server, work):
        for word in (b"one", b"two"):
            server.say(word)
            await moment()
        server.pieces.put_nowait(None)
        with pytest.raises(UpstreamTruncatedError):
            await work
    assert sink.seen == [b"one", b"two"]


@on_every_loop
async def test_cancelled_while_the_sink_waits_the_sink_ends_too():
    sink = Sink()
    async with handing_on(sink) as (server, work):
        server.say(b"one")
        await moment()
        sink.gate.clear()
        server.say(b"two")
        await moment()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert sink.seen == [b"one"]
    assert sink.ended == 2
