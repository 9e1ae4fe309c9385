"""A connection pool to one HTTP/1.1 server that hands response bytes on as they come.

The relay's cost per streamed token is what every user pays for having a router, so this is written
on asyncio's protocol and httptools (the C parser that uvicorn uses), with no object per chunk
beyond the bytes themselves: `serve_app/decisions/0002-relay.md` has the figures.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httptools

from serve_app.serving.http import Headers
from serve_app.serving.stepping import Suspended

Taking = Coroutine[Any, Any, None]
Sink = Callable[[bytes], Taking | None]
"""Takes a piece of a body: at once (None), or by a coroutine that waits for a slow reader."""

_HIGH_WATER_BYTES = 256 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BODILESS = frozenset({204, 304})
_MAX_DRY_BYTES = 256 * 1024
"""That may come in a row without a byte of body: heads, interim answers, chunk extensions, and
trailers have no end of their own."""


class UpstreamUnreachableError(Exception):
    """No byte of an answer came: another server may be asked."""


class UpstreamTruncatedError(Exception):
    """The answer broke off after its start."""


class UpstreamConnection(asyncio.Protocol):
    """One connection, one exchange at a time: `send()`, then `status`, `headers` and `read()`.

    Always `close()` or `release()` it: a connection that is closed before its answer's end is
    reset, so that the server learns at once that nobody listens any more.
    """

    def __init__(self, pool: "UpstreamPool") -> None:
        self.status = 0
        self.headers: Headers = []
        self.reused = False
        self.idle = False
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []  # one list for good: `on_body` is its append()
        self._buffered_bytes = 0
        self._dry_bytes = 0
        self._paused = False
        self._asked = False
        self._framed = False
        self._head_done = False
        self._done = False
        self._keep_alive = False
        self._lost = False
        self._sink: Sink | None = None
        self._sink_error: Exception | None = None
        self._suspended: Suspended | None = None
        self._in_sink = False
        self.on_body = self._chunks.append
        """httptools calls it for each piece of the body: no frame of ours for that."""
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse; wake the reader once for all that came.

        What comes before a request or after the end of its answer belongs to nobody, and least of
        all to the next request: the connection ends with this exchange.
        """
        if self._done or not self._asked:
            self._keep_alive = False
            if self.idle:
                self._pool.forget(self)
                self.close()
            return
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse_rest()
        chunks = self._chunks
        if not chunks:
            self._count_dry(len(data))
        elif self._sink is not None and self._waiter is not None and not self._waiter.done():
            # The task sleeps, so pieces keep their order. Written out here, since each frame costs
            # a token a microsecond or two in caches that others use too.
            self._dry_bytes = 0
            piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            try:
                taking = self._sink(piece)
                if taking is not None:
                    self._suspended = Suspended(taking, taking.send(None))
            except StopIteration:
                pass
            except Exception as error:
                self._sink_error = error
        else:
            self._count_buffered(len(data))
        is_over = self._done or self._lost
        if is_over or chunks or self._sink is None or self._suspended or self._sink_error:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer without a length ends here if in good order; any other is cut short."""
        self._lost = True
        if self._head_done and not self._framed and exc is None:
            self._done = True
        if self.idle:
            self._pool.forget(self)
        self._wake()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """End the parsing at an answer that nobody asked for."""
        if self._done:
            raise UpstreamTruncatedError("the server sent more than the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect headers with lower-case names. Trailers come after the head was passed on.

        A coding that we did not ask for (and ask for none) would reach the client as its own bytes.
        """
        if self._head_done:
            return
        name = name.lower()
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            if self._framed or value.lower() != b"chunked":
                raise UpstreamTruncatedError(
                    f"a transfer-encoding that nobody asked for: {value!r}"
                )
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole; an interim answer (1xx) is skipped."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers, self._framed = [], False
        else:
            self._head_done = True
            self._framed = self._framed or self.status in _BODILESS

    def on_message_complete(self) -> None:
        """The body is whole; only now does the parser know whether the connection stays."""
        if self._head_done:
            self._done = True
            self._keep_alive = self._framed and self._parser.should_keep_alive()

    # the exchange

    async def send(self, request: bytes) -> None:
        """Send a whole request and wait for the head of the answer.

        Raises UpstreamUnreachableError when the connection ends without one.
        """
        assert self._transport is not None
        self._asked = True
        self._transport.write(request)
        while not self._head_done:
            if self._lost:
                raise UpstreamUnreachableError("the connection closed before any answer")
            await self._wait()

    async def read(self) -> bytes:
        """All body bytes that have come since the last call; empty at the end of the body.

        Raises UpstreamTruncatedError when the connection ends before the body does.
        """
        while not self._chunks:
            if self._is_over():
                return b""
            await self._wait()
        return self._take()

    async def begun(self) -> None:
        """Wait for the first bytes of the body, or its end; takes none of them.

        Raises UpstreamTruncatedError when the connection ends before either.
        """
        while not self._chunks and not self._is_over():
            await self._wait()

    @property
    def held_back(self) -> bool:
        """Whether `hand_on` waits for its sink, not for the server."""
        return self._suspended is not None or self._in_sink

    async def hand_on(self, sink: Sink) -> None:
        """Give all of the body to `sink`, piece by piece as it comes.

        While nothing is left to do the sink is run from the callback that brings the bytes; this
        task wakes for the end, for a sink that waits, and for errors. Raises what the sink raises,
        and UpstreamTruncatedError.
        """
        self._sink = sink
        try:
            while True:
                if self._sink_error is not None:
                    raise self._sink_error
                if self._suspended is not None:
                    suspended, self._suspended = self._suspended, None
                    await self._wait_for_sink(suspended)
                elif self._chunks:
                    taking = sink(self._take())
                    if taking is not None:
                        await self._wait_for_sink(taking)
                elif self._is_over():
                    return
                else:
                    await self._wait()
        finally:
            self._sink = self._sink_error = None
            if self._suspended is not None:
                self._suspended.close()
                self._suspended = None

    async def _wait_for_sink(self, taking: Awaitable[None]) -> None:
        self._in_sink = True
        try:
            await taking
        finally:
            self._in_sink = False

    def _count_dry(self, n_bytes: int) -> None:
        """Bytes without any of a body have come: heads, chunk extensions, trailers."""
        self._dry_bytes += n_bytes
        if self._dry_bytes > _MAX_DRY_BYTES:
            self._refuse_rest()

    def _count_buffered(self, n_bytes: int) -> None:
        """Bytes have come that nobody takes now; their framing is counted with them."""
        self._dry_bytes = 0
        self._buffered_bytes += n_bytes
        if self._buffered_bytes > _HIGH_WATER_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def _sleeper(self) -> asyncio.Future[None] | None:
        """What the task sleeps on; None if it runs, or is woken and has work that comes first."""
        return None if self._waiter is None or self._waiter.done() else self._waiter

    def _is_over(self) -> bool:
        """Whether nothing more will come. Raises UpstreamTruncatedError if more should have."""
        if self._lost and not self._done:
            raise UpstreamTruncatedError("the connection closed in the middle of the answer")
        return self._done

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def release(self) -> None:
        """Give the connection back for the next request, if the server keeps it open."""
        reusable = self._done and not self._lost and not self._chunks
        if reusable and self._keep_alive and self._all_sent():
            self._reset()
            self._pool.put(self)
        else:
            self.close()

    def close(self) -> None:
        """End the connection; reset it if it is in the middle of an answer."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._asked and not self._done:
            raw = self._transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        else:
            self._transport.close()

    def _all_sent(self) -> bool:
        """A server that answered early may take the rest of a request for another request."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def _refuse_rest(self) -> None:
        """What came is no HTTP, or more than one answer; a whole answer stands."""
        self._keep_alive = False
        if not self._done:
            self.close()
            self._lost = True

    def _reset(self) -> None:
        self.status, self.headers, self.reused = 0, [], True
        self._dry_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self._asked = self._framed = self._head_done = self._done = self._keep_alive = False

    async def _wait(self) -> None:
        self._waiter = self._pool.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        sleeper = self._sleeper()
        if sleeper is not None:
            sleeper.set_result(None)


class UpstreamPool:
    """Connections to one `host:port`; idle ones are used again, the latest first."""

    def __init__(
        self, host: str, port: int, *, connect_timeout_s: float = 5.0, max_idle: int = 256
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._address = (host, port)
        self._connect_timeout_s = connect_timeout_s
        self._max_idle = max_idle
        self._idle: deque[UpstreamConnection] = deque()

    async def request(self, request: bytes) -> UpstreamConnection:
        """Send a request; returns the connection with the answer's head.

        A kept connection that the server had closed meanwhile is replaced by a fresh one, once.
        Raises UpstreamUnreachableError; the caller owns the connection that is returned.
        """
        connection = self._take() or await self._connect()
        while True:
            try:
                await connection.send(request)
            except UpstreamUnreachableError:
                connection.close()
                if not connection.reused:
                    raise
                connection = await self._connect()
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def put(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= self._max_idle:
            connection.close()
            return
        connection.idle = True
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """The server closed a kept connection."""
        connection.idle = False
        self._idle.remove(connection)

    def close(self) -> None:
        """Close what is kept, and keep nothing any more."""
        self._max_idle = 0
        while self._idle:
            connection = self._idle.pop()
            connection.idle = False
            connection.close()

    def _take(self) -> UpstreamConnection | None:
        if not self._idle:
            return None
        connection = self._idle.pop()
        connection.idle = False
        return connection

    async def _connect(self) -> UpstreamConnection:
        host, port = self._address
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self.loop.create_connection(
                    lambda: UpstreamConnection(self), host, port
                )
        except (OSError, TimeoutError) as error:
            raise UpstreamUnreachableError(f"cannot connect to {host}:{port}: {error}") from error
        return connection
