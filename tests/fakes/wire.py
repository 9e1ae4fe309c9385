"""An HTTP/1.1 client that sends the bytes it is told, wrong ones too, and reads what comes back."""

import asyncio
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import httptools

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BODILESS = frozenset({204, 304})

Ending = Literal["whole", "closed", "reset", "silent", "nonsense", "left"]
"""How the conversation ended: every answer came; the server closed or reset before; nothing came
for too long; what came is no HTTP; the client left on purpose."""


@dataclass
class Reply:
    """One answer. `whole`: its body came to its announced end."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True)
class Talk:
    """What to send on one connection, and what is due.

    `pieces` are bytes, and pauses in seconds. `n_answers` answers are awaited; `leaves`: after the
    last piece the client is gone, by a reset, without reading.
    """

    pieces: Sequence[bytes | float]
    n_answers: int = 1
    leaves: bool = False
    half_closes: bool = False
    """The client says that it sends no more, and reads on."""
    is_head: bool = False
    """Asked by HEAD: no body follows."""


@dataclass
class Outcome:
    """What came of it."""

    ending: Ending
    replies: list[Reply] = field(default_factory=list)


class _Reader(asyncio.Protocol):
    """Parses answers; `woken` is set at each end and at the connection's."""

    def __init__(self, is_head: bool) -> None:
        self.replies: list[Reply] = []
        self.lost: Literal["closed", "reset"] | None = None
        self.is_nonsense = False
        self.n_whole = 0
        self.woken = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self._is_head = is_head
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.is_nonsense = True
            self.woken.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = "reset" if error else "closed"
        self.writable.set()
        self.woken.set()

    def on_message_begin(self) -> None:
        self.replies.append(Reply())

    def on_header(self, name: bytes, value: bytes) -> None:
        pair = name.decode("latin-1").lower(), value.decode("latin-1")
        self.replies[-1].headers.append(pair)

    def on_headers_complete(self) -> None:
        status = self.replies[-1].status = self._parser.get_status_code()
        if status < 200:
            self.replies.pop()
        elif self._is_head or status in _BODILESS:
            self._whole()

    def on_body(self, body: bytes) -> None:
        self.replies[-1].body += body

    def on_message_complete(self) -> None:
        if not self._is_head and self.replies and not self.replies[-1].whole:
            self._whole()

    def _whole(self) -> None:
        self.replies[-1].whole = True
        self.n_whole += 1
        self.woken.set()


class Wire:
    """Talks to one port, each conversation on a connection of its own."""

    def __init__(self, port: int, *, limit_s: float = 15.0) -> None:
        self._port = port
        self._limit_s = limit_s

    async def talk(self, talk: Talk) -> Outcome:
        """Have one conversation; it never raises for what the server does."""
        loop = asyncio.get_running_loop()
        reader: _Reader
        try:
            transport, reader = await loop.create_connection(
                lambda: _Reader(talk.is_head), "127.0.0.1", self._port
            )
        except OSError:
            return Outcome("reset")
        try:
            async with asyncio.timeout(self._limit_s):
                await self._send(talk, reader, transport)
                if talk.leaves:
                    return Outcome("left", reader.replies)
                ending = await self._read(talk.n_answers, reader)
        except TimeoutError:
            ending = "silent"
        finally:
            if talk.leaves:
                raw = transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            transport.abort()
        return Outcome(ending, reader.replies)

    async def _send(self, talk: Talk, reader: _Reader, transport: asyncio.Transport) -> None:
        for piece in talk.pieces:
            if reader.lost:
                return
            if isinstance(piece, bytes):
                transport.write(piece)
                await reader.writable.wait()
            else:
                await asyncio.sleep(piece)
        if talk.half_closes and not reader.lost:
            transport.write_eof()

    async def _read(self, n_answers: int, reader: _Reader) -> Ending:
        while True:
            if reader.is_nonsense:
                return "nonsense"
            if reader.n_whole >= n_answers:
                return "whole"
            if reader.lost:
                return reader.lost
            reader.woken.clear()
            await reader.woken.wait()


def request(
    method: str = "POST",
    target: str = "/v1/chat/completions",
    body: bytes | None = b"",
    headers: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The bytes of a request; with a body of None there is no Content-Length either."""
    lines = [f"{method} {target} HTTP/1.1", "host: fuzz", *(f"{k}: {v}" for k, v in headers)]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
