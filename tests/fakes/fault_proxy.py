"""A TCP proxy before an HTTP server that counts what it hands on, and spoils answers when told to.

It reads requests and answers as far as their heads and lengths, so that a fault hits where it
should: in the body of the answer to a chosen request.
"""

import re
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.fakes.background import InBackground

PIECE_BYTES = 1 << 16
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True)
class Request:
    """What was asked: `number` counts the requests of this proxy from 0."""

    number: int
    method: str
    path: str
    range: str | None

    @property
    def is_data(self) -> bool:
        """Whether it reads a part of a file."""
        return self.method == "GET" and self.range is not None


@dataclass(frozen=True)
class Fault:
    """`after_bytes` of the body: `reset`, `truncate` (a clean end), `stall`, or `corrupt` (one
    byte, and on); `slow_down`: 503 in place of the answer."""

    kind: str
    after_bytes: int = 0


Decide = Callable[[Request], Fault | None]


class FaultProxy(InBackground):
    """`with FaultProxy(url) as proxy`: `proxy.url`; `proxy.decide` may be set at any time."""

    def __init__(self, upstream: str, decide: Decide = lambda request: None) -> None:
        self.upstream = urlsplit(upstream)
        self.decide = decide
        self.requests: list[Request] = []
        self.data_bytes = 0
        """Of the bodies of data that were handed on."""
        self.stall_s = 60.0
        self.lock = threading.Lock()
        handler = type("Handler", (_Connection,), {"proxy": self})
        super().__init__(_Server(("127.0.0.1", 0), handler))

    def forget(self) -> None:
        """Start counting anew."""
        with self.lock:
            self.requests, self.data_bytes = [], 0


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients are killed here
            super().handle_error(request, client_address)


class _BrokenOffError(OSError):
    pass


class _Connection(socketserver.BaseRequestHandler):
    proxy: FaultProxy
    request: socket.socket

    def handle(self) -> None:
        # What lies in the buffers when a client is killed was handed on, and is lost.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upstream = (self.proxy.upstream.hostname, self.proxy.upstream.port)
        with self.request.makefile("rb") as asked:
            while head := _head(asked):
                with socket.create_connection(upstream) as server:
                    if not self._exchange(head, asked, server):
                        return

    def _exchange(self, head: bytes, asked, server: socket.socket) -> bool:
        length = _header(head, b"content-length")
        body = asked.read(int(length or 0))
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        wanted = _header(head, b"range")
        with self.proxy.lock:
            request = Request(len(self.proxy.requests), method, path, wanted)
            self.proxy.requests.append(request)
        fault = self.proxy.decide(request)
        if fault and fault.kind == "slow_down":
            self.request.sendall(_answer_503())
            return True
        server.sendall(_closing(head) + body)
        with server.makefile("rb") as answered:
            answer = _head(answered)
            self.request.sendall(answer)
            n_bytes = _body_bytes(method, answer)
            self._relay(answered, n_bytes, request.is_data, fault)
        return n_bytes is not None

    def _relay(self, answered, n_bytes: int | None, is_data: bool, fault: Fault | None) -> None:
        sent = 0
        while n_bytes is None or sent < n_bytes:
            most = PIECE_BYTES if n_bytes is None else min(PIECE_BYTES, n_bytes - sent)
            if fault and fault.kind != "corrupt":
                most = min(most, fault.after_bytes - sent)
                if most == 0:
                    self._break(fault)
            piece = answered.read1(most)
            if not piece:
                return
            if fault and fault.kind == "corrupt" and sent <= fault.after_bytes < sent + len(piece):
                at = fault.after_bytes - sent
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            self.request.sendall(piece)
            sent += len(piece)
            if is_data:
                with self.proxy.lock:
                    self.proxy.data_bytes += len(piece)

    def _break(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self.request.settimeout(self.proxy.stall_s)
            self.request.recv(1)  # until the client gives up
        if fault.kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.request.close()
        raise _BrokenOffError(fault.kind)


def _head(stream) -> bytes:
    """Up to the empty line; empty where the connection ended."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _header(head: bytes, name: bytes) -> str | None:
    found = re.search(rb"(?im)^" + name + rb":\s*(.*?)\r$", head)
    return found[1].decode() if found else None


def _closing(head: bytes) -> bytes:
    """The request, as the only one of its connection upstream."""
    kept = re.sub(rb"(?im)^(connection|expect):.*\r\n", b"", head)
    return kept.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _body_bytes(method: str, answer: bytes) -> int | None:
    """The bytes of the answer's body; None where it ends with the connection."""
    if method == "HEAD" or answer.split(b" ", 2)[1] in {b"204", b"304"}:
        return 0
    length = _header(answer, b"content-length")
    return None if length is None else int(length)


def _answer_503() -> bytes:
    lines = ("HTTP/1.1 503 Slow Down", "Content-Type: application/xml")
    head = "\r\n".join((*lines, f"Content-Length: {len(_SLOW_DOWN)}", "", ""))
    return head.encode() + _SLOW_DOWN


def until(met: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for something that another thread or process does."""
    deadline_s = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.002)
