"""The connection pool against servers that behave, and servers that do not."""

import asyncio
import functools
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from serve_app.serving.upstream import (
    UpstreamConnection,
    UpstreamPool,
    UpstreamTruncatedError,
    UpstreamUnreachableError,
)
from tests.fakes.raw_server import Peer, RawServer, answer, chunked

GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop}
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop  # what Ray gives its workers


def on_every_loop(scenario):
    """Run an async test on asyncio's loop and on uvloop's, each within 10 s."""

    @functools.wraps(scenario)
    def test(*self, loop, **arguments):
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(asyncio.wait_for(scenario(*self, **arguments), 10))

    own = inspect.signature(scenario).parameters.values()
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = inspect.Signature([*own, loop])
    del test.__wrapped__
    return pytest.mark.parametrize("loop", LOOPS)(test)


@asynccontextmanager
async def serving(talk, **options) -> AsyncIterator[tuple[UpstreamPool, RawServer]]:
    async with RawServer(talk) as server:
        pool = UpstreamPool("127.0.0.1", server.port, **options)
        yield pool, server
        pool.close()


async def body_of(connection: UpstreamConnection) -> bytes:
    body = b""
    while piece := await connection.read():
        body += piece
    return body


async def exchange(pool: UpstreamPool, request: bytes = GET) -> tuple[int, bytes]:
    connection = await pool.request(request)
    body = await body_of(connection)
    status = connection.status
    connection.release()
    return status, body


async def moment() -> None:
    """Let both ends of a loopback connection hear of each other."""
    await asyncio.sleep(0.05)


async def echo(peer: Peer) -> None:
    while True:
        await peer.say(answer(b"to: " + await peer.request()))


def saying(*pieces: bytes):
    """A server that answers every request on a connection with these bytes."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(*pieces)

    return talk


@on_every_loop
async def test_a_connection_is_used_again_and_answers_do_not_mix():
    async with serving(echo) as (pool, server):
        for number in range(5):
            request = b"POST /%d HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc" % number
            assert await exchange(pool, request) == (200, b"to: " + request)
        assert server.n_connections == 1


@on_every_loop
async def test_a_connection_in_use_is_not_shared():
    async with serving(echo) as (pool, server):
        first, second = await pool.request(GET), await pool.request(GET)
        assert server.n_connections == 2
        for connection in (second, first):
            assert (await body_of(connection)).startswith(b"to: GET")
            connection.release()
        await asyncio.gather(exchange(pool), exchange(pool))
        assert server.n_connections == 2


@on_every_loop
async def test_chunks_arrive_as_they_are_sent():
    go_on = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        head, first, *rest = chunked(b"data: 1\n\n", b"data: 2\n\n")
        await peer.say(head, first)
        await go_on.wait()
        await peer.say(*rest)
        await peer.request()
        await peer.say(answer(b"next"))

    async with serving(talk) as (pool, server):
        connection = await pool.request(GET)
        assert await connection.read() == b"data: 1\n\n"
        go_on.set()
        assert await body_of(connection) == b"data: 2\n\n"
        connection.release()
        assert await exchange(pool) == (200, b"next")
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize("size", [1, 7, 65536])
async def test_bytes_may_come_in_any_portions(size: int):
    whole = b"".join(chunked(b"a" * 10, b"b" * 20))

    async def talk(peer: Peer) -> None:
        await peer.request()
        for start in range(0, len(whole), size):
            await peer.say(whole[start : start + size])
            await asyncio.sleep(0)

    async with serving(talk) as (pool, _):
        assert await exchange(pool) == (200, b"a" * 10 + b"b" * 20)


class TestStaleConnections:
    """The server may close a kept connection at any time."""

    async def used_then(self, after, pool_first: int = 1):
        """A server whose first connections answer once, then do `after`; later ones just answer."""

        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.say(answer(b"%d" % peer.number))
            if peer.number <= pool_first:
                await after(peer)
            else:
                await echo(peer)

        return talk

    @on_every_loop
    async def test_closed_while_idle_is_replaced(self):
        async def after(peer: Peer) -> None:
            peer.close()

        async with serving(await self.used_then(after)) as (pool, server):
            assert await exchange(pool) == (200, b"1")
            await moment()
            assert await exchange(pool) == (200, b"2")
            assert server.n_connections == 2

    @on_every_loop
    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_closed_on_the_next_request_is_replaced_once(self, how: str):
        async def after(peer: Peer) -> None:
            await peer.request()
            getattr(peer, how)()

        async with serving(await self.used_then(after)) as (pool, server):
            assert await exchange(pool) == (200, b"1")
            assert await exchange(pool) == (200, b"2")
            assert server.n_connections == 2
            assert len(server.requests) == 3

    @on_every_loop
    async def test_a_fresh_connection_that_closes_too_is_not_tried_again(self):
        async def talk(peer: Peer) -> None:
            await peer.request()
            if peer.number == 1:
                await peer.say(answer(b"1"))
                await peer.request()
            peer.close()

        async with serving(talk) as (pool, server):
            await exchange(pool)
            with pytest.raises(UpstreamUnreachableError, match="before any answer"):
                await pool.request(GET)
            assert server.n_connections == 2

    @on_every_loop
    async def test_taken_in_the_moment_of_its_closing_is_replaced(self):
        """Between the transport's closing and its `connection_lost` lies a turn of the loop."""
        async with serving(echo) as (pool, server):
            connection = await pool.request(GET)
            await body_of(connection)
            connection.release()
            connection.close()
            assert await exchange(pool) == (200, b"to: " + GET)
            assert server.n_connections == 2

    @on_every_loop
    async def test_many_stale_connections_cost_one_attempt_each_request(self):
        waiting: list[Peer] = []

        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.say(answer())
            waiting.append(peer)
            await peer.request()
            await peer.say(answer(b"again"))

        async with serving(talk) as (pool, server):
            connections = [await pool.request(GET) for _ in range(8)]
            for connection in connections:
                await body_of(connection)
                connection.release()
            await moment()
            for peer in waiting:
                peer.close()
            await moment()
            assert await exchange(pool) == (200, b"")
            assert server.n_connections == 9

    @on_every_loop
    @pytest.mark.parametrize(
        "unasked",
        [answer(b"", status=b"408 Request Time-out"), answer(b"not yours"), b"\r\n\r\nhm"],
    )
    async def test_what_is_said_on_an_idle_connection_is_nobodys_answer(self, unasked: bytes):
        async def after(peer: Peer) -> None:
            await peer.say(unasked)
            await peer.gone()

        async with serving(await self.used_then(after)) as (pool, _):
            assert await exchange(pool) == (200, b"1")
            await moment()
            assert await exchange(pool) == (200, b"2")

    @on_every_loop
    async def test_connection_close_is_obeyed(self):
        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.say(answer(b"%d" % peer.number, b"connection: close"))
            assert await peer.gone() == "closed"

        async with serving(talk) as (pool, _):
            assert await exchange(pool) == (200, b"1")
            assert await exchange(pool) == (200, b"2")

    @on_every_loop
    async def test_no_more_than_so_many_are_kept(self):
        async with serving(echo, max_idle=2) as (pool, server):
            connections = [await pool.request(GET) for _ in range(4)]
            for connection in connections:
                await body_of(connection)
                connection.release()
            for connection in [await pool.request(GET) for _ in range(3)]:
                connection.close()
            assert server.n_connections == 5


@on_every_loop
async def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        pool = UpstreamPool("127.0.0.1", free.getsockname()[1])
        with pytest.raises(UpstreamUnreachableError, match="cannot connect to 127"):
            await pool.request(GET)


@on_every_loop
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"])
async def test_closed_before_the_head_is_whole(how: str, said: bytes):
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await moment()
        getattr(peer, how)()

    async with serving(talk) as (pool, server):
        with pytest.raises(UpstreamUnreachableError, match="before any answer"):
            await pool.request(GET)
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "pieces",
    [chunked(b"half", end=False), [answer(b"half" * 100)[:-396]]],
    ids=["chunked", "with a length"],
)
async def test_a_body_that_is_cut_short_gives_what_came_and_then_an_error(how, pieces):
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces)
        await moment()
        getattr(peer, how)()

    async with serving(talk) as (pool, server):
        connection = await pool.request(GET)
        assert await connection.read() == b"half"
        with pytest.raises(UpstreamTruncatedError):
            await connection.read()
        connection.close()
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n"])
async def test_a_body_without_a_length_ends_with_the_connection(head: bytes):
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(head + b"\r\nuntil ")
        await moment()
        await peer.say(b"the end")
        peer.close()

    async with serving(talk) as (pool, server):
        assert await exchange(pool) == (200, b"until the end")
        assert await exchange(pool) == (200, b"until the end")
        assert server.n_connections == 2


@on_every_loop
async def test_a_body_without_a_length_that_is_reset_is_cut_short():
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await moment()
        peer.reset()

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        with pytest.raises(UpstreamTruncatedError):
            await body_of(connection)
        connection.close()


@on_every_loop
async def test_interim_answers_are_skipped():
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-length: 0\r\n\r\n"
    final = answer(b"body", b"x-final: 1", status=b"201 Created")
    async with serving(saying(b"HTTP/1.1 100 Continue\r\n\r\n" + interim, final)) as (pool, server):
        connection = await pool.request(GET)
        assert connection.status == 201
        assert dict(connection.headers) == {b"content-length": b"4", b"x-final": b"1"}
        assert await body_of(connection) == b"body"
        connection.release()
        assert await exchange(pool) == (201, b"body")
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_that_have_no_body_end_at_once_and_keep_the_connection(status: bytes):
    async with serving(saying(b"HTTP/1.1 " + status + b"\r\n\r\n")) as (pool, server):
        for _ in range(2):
            assert await exchange(pool) == (int(status[:3]), b"")
        assert server.n_connections == 1


@on_every_loop
async def test_a_slow_reader_holds_the_server_back():
    piece, n_pieces = b"x" * 65536, 256  # 16 MiB
    said = 0

    async def talk(peer: Peer) -> None:
        nonlocal said
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(high=65536)
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * n_pieces))
        for _ in range(n_pieces):
            await peer.say(piece)
            said += len(piece)
        await echo(peer)

    async with serving(talk) as (pool, server):
        connection = await pool.request(GET)
        seen = -1
        while said > seen:  # until the server is stuck
            seen = said
            await asyncio.sleep(0.1)
        assert said < len(piece) * n_pieces
        first = await connection.read()
        # Our own buffer: the mark, and what one more read of the loop may add.
        assert len(first) <= 1024 * 1024
        total = len(first) + len(await body_of(connection))
        assert total == len(piece) * n_pieces
        connection.release()
        assert (await exchange(pool))[0] == 200
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize("read_first", [False, True])
async def test_closing_in_the_middle_tells_the_server_at_once(read_first: bool):
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(*chunked(b"first", end=False))
        gone.set_result(await peer.gone())

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        if read_first:
            assert await connection.read() == b"first"
        connection.close()
        connection.close()  # twice is no harm
        assert await asyncio.wait_for(gone, 1) == "reset"


@on_every_loop
async def test_closing_with_much_unread_tells_the_server_too():
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def talk(peer: Peer) -> None:
        await peer.request()
        try:
            await peer.say(*chunked(*[b"x" * 65536] * 256))
        except ConnectionError:
            gone.set_result("reset")

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        await asyncio.sleep(0.2)
        connection.close()
        assert await asyncio.wait_for(gone, 1) == "reset"


@on_every_loop
async def test_a_request_that_is_cancelled_while_it_waits_tells_the_server():
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    came = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        came.set()
        gone.set_result(await peer.gone())

    async with serving(talk) as (pool, _):
        asked = asyncio.create_task(pool.request(GET))
        await came.wait()
        asked.cancel()
        assert await asyncio.wait_for(gone, 1) == "reset"
        with pytest.raises(asyncio.CancelledError):
            await asked


@on_every_loop
async def test_a_large_head_is_taken_whole():
    headers = [b"x-%d: %b" % (number, b"v" * 1000) for number in range(60)]
    async with serving(saying(answer(b"body", b"x-huge: " + b"h" * 60_000, *headers))) as (pool, _):
        connection = await pool.request(GET)
        assert len(connection.headers) == 62
        assert dict(connection.headers)[b"x-huge"] == b"h" * 60_000
        assert await body_of(connection) == b"body"
        connection.release()


@on_every_loop
@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: minus one\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_garbage_is_no_answer(garbage: bytes):
    async with serving(saying(garbage)) as (pool, _):
        with pytest.raises(UpstreamUnreachableError):
            await pool.request(GET)


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"transfer-encoding: chunked\r\n"


@on_every_loop
@pytest.mark.parametrize(
    "head",
    [
        b"x-folded: one\r\n two\r\ncontent-length: 1\r\n",
        b"content-length: 1\r\ncontent-length: 1\r\n",
        b"content-length: 1\r\ncontent-length: 2\r\n",
        b"content-length: 1, 1\r\n",
        b"content-length: +1\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"content-length : 1\r\n",
        b"content-length: 1\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"x-nul: a\0b\r\ncontent-length: 1\r\n",
        b"x-cr: a\rb\r\ncontent-length: 1\r\n",
        b"x-lf: a\ncontent-length: 1\r\n",
        b": no name\r\ncontent-length: 1\r\n",
    ],
)
async def test_a_head_that_two_parsers_could_read_in_two_ways_is_refused(head: bytes):
    body = b"1\r\na\r\n0\r\n\r\n" if b"chunked" in head else b"a"
    async with serving(saying(OK + head + b"\r\n" + body)) as (pool, server):
        with pytest.raises(UpstreamUnreachableError):
            await pool.request(GET)
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize(
    "rest",
    [
        b"fffffffffffffffff\r\na\r\n",
        b"0x1\r\na\r\n",
        b"-1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\n",
        b"1\r\nab\r\n",
    ],
)
async def test_a_chunk_that_two_parsers_could_read_in_two_ways_cuts_the_body_short(rest: bytes):
    whole = OK + CHUNKED + b"\r\n4\r\nhalf\r\n" + rest
    async with serving(saying(whole)) as (pool, _):
        connection = await pool.request(GET)
        with pytest.raises(UpstreamTruncatedError):
            assert (await body_of(connection)).startswith(b"half")
        connection.close()


@on_every_loop
@pytest.mark.parametrize("at_once", [True, False])
async def test_trailers_are_read_and_forgotten(at_once: bool):
    """A head that was passed on cannot change any more, and the next answer's must not."""
    end = b"0\r\nx-variant: other\r\nset-cookie: a=b\r\n\r\n"

    async def talk(peer: Peer) -> None:
        await peer.request()
        if at_once:
            await peer.say(b"".join([*chunked(b"body", end=False), end]))
        else:
            await peer.say(*chunked(b"body", end=False))
            for byte in end:
                await peer.say(bytes([byte]))
                await asyncio.sleep(0)
        await peer.request()
        await peer.say(answer(b"next"))

    async with serving(talk) as (pool, server):
        connection = await pool.request(GET)
        assert await body_of(connection) == b"body"
        assert connection.headers == [(b"transfer-encoding", b"chunked")]
        connection.release()
        connection = await pool.request(GET)
        assert connection.headers == [(b"content-length", b"4")]
        assert await body_of(connection) == b"next"
        connection.release()
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize(
    "trailer", [b"content-length: 4", b"transfer-encoding: chunked", b"no colon"]
)
async def test_a_trailer_that_frames_or_is_none_cuts_the_body_short(trailer: bytes):
    async with serving(saying(*chunked(b"body", end=False), b"0\r\n" + trailer + b"\r\n\r\n")) as (
        pool,
        server,
    ):
        connection = await pool.request(GET)
        if trailer.startswith(b"transfer-encoding"):  # says what is so, and changes nothing
            assert await body_of(connection) == b"body"
        else:
            with pytest.raises(UpstreamTruncatedError):
                await body_of(connection)
        connection.release()
        assert server.n_connections == 1


@on_every_loop
async def test_chunk_extensions_are_skipped():
    chunks = b'4;a=b;c="d;e"\r\nbody\r\n0;last\r\n\r\n'
    async with serving(saying(OK + CHUNKED + b"\r\n" + chunks)) as (pool, server):
        for _ in range(2):
            assert await exchange(pool) == (200, b"body")
        assert server.n_connections == 1


FLOODS = {
    "header": (OK, b"x-a: " + b"a" * 1000 + b"\r\n"),
    "one header": (OK + b"x-a: ", b"a" * 1000),
    "reason": (b"HTTP/1.1 200 ", b"a" * 1000),
    "interim": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 20),
    "blank lines": (b"", b"\r\n" * 500),
}
WET_FLOODS = {
    "chunk extension": (b"1;", b"a" * 1000),
    "trailers": (b"0\r\n", b"x-a: " + b"a" * 1000 + b"\r\n"),
    "one trailer": (b"0\r\nx-a: ", b"a" * 1000),
}


def flooding(first: bytes, more: bytes, said: list[int]):
    """A server that never comes to an end; `said` has the bytes that it got rid of."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(high=16384)
        await peer.say(first)
        for _ in range(100_000):
            await peer.say(more)
            said.append(len(more))
            await asyncio.sleep(0)

    return talk


@on_every_loop
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_head_without_end_is_refused(flood: str):
    said: list[int] = []
    async with serving(flooding(*FLOODS[flood], said)) as (pool, server):
        with pytest.raises(UpstreamUnreachableError):
            await pool.request(GET)
        assert server.n_connections == 1
    assert 200_000 < sum(said) < 16_000_000  # what the kernel buffers comes on top


@on_every_loop
@pytest.mark.parametrize("flood", WET_FLOODS)
async def test_framing_without_end_cuts_the_body_short(flood: str):
    first, more = WET_FLOODS[flood]
    head = b"".join(chunked(b"body", end=False))
    async with serving(flooding(head + first, more, [])) as (pool, _):
        connection = await pool.request(GET)
        with pytest.raises(UpstreamTruncatedError):
            assert await body_of(connection) == b"body"
        assert len(connection.headers) == 1
        connection.close()


@on_every_loop
async def test_a_long_body_may_have_much_framing_in_all():
    """Only what comes without a byte of body in between is counted."""
    extension = b"x" * 10_000
    piece = b"1;" + extension + b"\r\na\r\n"
    async with serving(saying(OK + CHUNKED + b"\r\n", *[piece] * 60, b"0\r\n\r\n")) as (
        pool,
        server,
    ):
        for _ in range(2):
            assert await exchange(pool) == (200, b"a" * 60)
        assert server.n_connections == 1


@on_every_loop
async def test_another_protocol_is_no_answer():
    switching = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    async with serving(saying(switching + b"PRI * HTTP/2.0")) as (pool, _):
        with pytest.raises(UpstreamUnreachableError):
            await pool.request(GET)


@on_every_loop
@pytest.mark.parametrize("how", ["at once", "apart"])
async def test_continue_before_the_answer_is_no_answer(how: str):
    """100 Continue may come before the body was sent, twice, and without anybody's asking."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            interim = b"HTTP/1.1 100 Continue\r\n\r\n"
            if how == "at once":
                await peer.say(interim * 2 + answer(b"body"))
            else:
                for piece in (interim, interim, answer(b"body")):
                    await peer.say(piece)
                    await moment()

    post = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nhi"
    async with serving(talk) as (pool, server):
        for _ in range(2):
            assert await exchange(pool, post) == (200, b"body")
        assert server.n_connections == 1


@on_every_loop
@pytest.mark.parametrize("header", [b"connection: close", b"connection: keep-alive"])
async def test_an_answer_before_the_request_was_read_is_the_answer(header: bytes):
    """A server may refuse a large request at its head: 413, 401, 429. What is left of the request
    must not go before the next one.
    """
    body = b"early"

    async def talk(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(answer(body, header, status=b"413 Too Large"))
        await peer.reader.read()  # until we close: else the kernel may reset what we have not read
        peer.close()

    large = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000
    async with serving(talk) as (pool, server):
        for _ in range(2):
            assert await exchange(pool, large) == (413, body)
        assert server.n_connections == 2


@on_every_loop
async def test_garbage_inside_a_body_cuts_it_short():
    head, piece = chunked(b"half", end=False)
    async with serving(saying(head, piece, b"not a chunk\r\n")) as (pool, _):
        connection = await pool.request(GET)
        with pytest.raises(UpstreamTruncatedError):
            await body_of(connection)
        connection.close()


@on_every_loop
@pytest.mark.parametrize("at_once", [True, False])
async def test_bytes_after_the_end_belong_to_no_request(at_once: bool):
    """A second answer that nobody asked for must not reach this client, nor the next one."""
    stray = answer(b"stray", b"x-stray: 1", status=b"500 Stray")

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            if peer.number > 1:
                await peer.say(answer(b"mine"))
            elif at_once:
                await peer.say(answer(b"mine") + stray)
            else:
                await peer.say(answer(b"mine"))
                await moment()
                await peer.say(stray)

    async with serving(talk) as (pool, server):
        connection = await pool.request(GET)
        if not at_once:
            await asyncio.sleep(0.2)
        assert (connection.status, await body_of(connection)) == (200, b"mine")
        assert dict(connection.headers) == {b"content-length": b"4"}
        connection.release()
        assert await exchange(pool) == (200, b"mine")
        assert server.n_connections == 2


@on_every_loop
async def test_closing_the_pool_closes_what_is_kept():
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer())
        gone.set_result(await peer.gone())

    async with serving(talk) as (pool, _):
        await exchange(pool)
        pool.close()
        assert await asyncio.wait_for(gone, 1) == "closed"


@on_every_loop
async def test_an_answer_that_outlives_the_pool_is_not_kept():
    async with serving(echo) as (pool, server):
        connection = await pool.request(GET)
        pool.close()
        assert await body_of(connection)
        connection.release()
        connection = await pool.request(GET)
        connection.close()
        assert server.n_connections == 2


@on_every_loop
async def test_a_server_that_restarts_under_load_loses_no_request():
    """Connections close at every moment: while idle, while taken, while connecting."""

    async def talk(peer: Peer) -> None:
        for _ in range(1 + peer.number % 3):
            await peer.request()
            await peer.say(answer(b"ok"))
        peer.close()

    async with serving(talk) as (pool, server):

        async def client() -> None:
            for _ in range(50):
                assert await exchange(pool) == (200, b"ok")

        await asyncio.gather(*(client() for _ in range(8)))
        assert len(server.requests) == 400
