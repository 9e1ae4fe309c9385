"""A TCP server on a free loopback port that says exactly the bytes that a test scripts."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Peer:
    """The server's side of one connection."""

    def __init__(self, server: "RawServer", reader: asyncio.StreamReader, writer) -> None:
        self.number = server.n_connections
        self._server = server
        self.reader: asyncio.StreamReader = reader
        self.writer: asyncio.StreamWriter = writer

    async def request(self) -> bytes:
        """The next whole request; kept in `server.requests`. IncompleteReadError at the end."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        whole = head + await self.reader.readexactly(length)
        self._server.requests.append(whole)
        return whole

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.writer.transport.abort()

    async def gone(self) -> str:
        """Wait until the client has left: `closed` in good order, or `reset`."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            return "reset"
        return "closed"


class RawServer:
    """`talk` holds the conversation of each connection; its failures fail the test."""

    def __init__(self, talk: Callable[[Peer], Awaitable[object]]) -> None:
        self.n_connections = 0
        self.requests: list[bytes] = []
        self.port = 0
        self._talk = talk
        self._peers: list[Peer] = []
        self._errors: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        peer = Peer(self, reader, writer)
        self._peers.append(peer)
        try:
            await self._talk(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            peer.close()
        except Exception as error:
            self._errors.append(error)
            peer.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for peer in self._peers:
            peer.close()
        if error is None and self._errors:
            raise self._errors[0]


def answer(body: bytes = b"", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer with its length."""
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


def chunked(*pieces: bytes, end: bool = True) -> list[bytes]:
    """The bytes of a chunked answer: its head, each piece, and its end."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return [head, *framed, *([b"0\r\n\r\n"] if end else [])]
