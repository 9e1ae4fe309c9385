"""One HTTP/1.1 exchange over a kept-alive socket, every piece of the body stamped on receipt.

Locust's `FastHttpSession.iter_lines` waits for 1,024 bytes before it yields, which moves TTFT;
hence `recv` and an HTTP parser here, and nothing else between the socket and the stamp. The
module knows only `socket`: under Locust gevent has made that cooperative.
"""

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from loadtests.drive.deadlines import Deadlines, Watch
from loadtests.drive.sse import Piece
from loadtests.records.record import ErrorClass
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import NS_PER_S

RECV_BYTES = 65_536
_MIN_CONNECT_S = 0.001
_MAX_CONNECT_S = 10.0
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass
class Exchange:
    """What one request brought back. `error` is about transport: a 500 with a body is none."""

    t_send_ns: int
    t_end_ns: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    pieces: list[Piece] = field(default_factory=list)
    error: ErrorClass | None = None
    detail: str | None = None

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(data for _, data in self.pieces)


class HttpTarget:
    """Connections to one origin, the last used first.

    Idle connections are kept without bound: there are never more than requests in flight.
    `base_url` is scheme, host, port and an optional path prefix.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"need http(s)://host[:port], have {base_url!r}")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._clock_ns = clock_ns
        self._deadlines = Deadlines(clock_ns)
        self._idle: list[socket.socket] = []
        # gzip would hold back SSE events until a block is full
        common = {"Host": parts.netloc, "Accept-Encoding": "identity", **(headers or {})}
        self._common = _header_lines(common)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The bytes of a request, so that they can be made before their time comes.

        Raises ConfigError if a header cannot be sent.
        """
        own = _header_lines(headers or {})
        head = (
            f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._common}{own}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body

    def exchange(self, request: bytes, timeout_s: float) -> Exchange:
        """Send `request` and read its whole answer within `timeout_s`. Errors are returned.

        A server may close a kept connection just as the request is on its way: if not one byte
        came back on it, the request goes out once more, on a new one.
        """
        t_send_ns = self._clock_ns()
        deadline_ns = t_send_ns + round(timeout_s * NS_PER_S)
        kept = self._kept_open()
        reply = _Reply(Exchange(t_send_ns))
        self._ask(kept, request, deadline_ns, reply)
        if kept is not None and reply.exchange.error is ErrorClass.CLOSED and not reply.now_ns:
            reply = _Reply(Exchange(t_send_ns))
            self._ask(None, request, deadline_ns, reply)
        return reply.exchange

    def _ask(
        self, sock: socket.socket | None, request: bytes, deadline_ns: int, reply: "_Reply"
    ) -> None:
        """Fill `reply` by `sock`, or by a new connection."""
        exchange = reply.exchange
        watch: Watch | None = None
        reuse = False
        try:
            if sock is None:
                sock = self._connect((deadline_ns - self._clock_ns()) / NS_PER_S)
            watch = self._deadlines.watch(sock, deadline_ns)
            sock.sendall(request)
            reuse = self._receive(sock, reply)
        except httptools.HttpParserError as error:
            exchange.error, exchange.detail = ErrorClass.MALFORMED, str(error)
        except OSError as error:
            exchange.error, exchange.detail = _transport_error(sock, exchange, error)
        finally:
            exchange.t_end_ns = self._clock_ns()
            if watch is not None:
                self._deadlines.release(watch)
                if watch.is_expired:
                    limit_s = (deadline_ns - exchange.t_send_ns) / NS_PER_S
                    exchange.error, exchange.detail = ErrorClass.TIMEOUT, f"no end in {limit_s:g} s"
                    reuse = False
            if sock is not None:
                if reuse:
                    self._idle.append(sock)
                else:
                    sock.close()

    def close(self) -> None:
        """Close idle connections. No exchange may be open."""
        self._deadlines.close()
        while self._idle:
            self._idle.pop().close()

    def _kept_open(self) -> socket.socket | None:
        """An idle connection that still stands, if there is one."""
        while self._idle:
            sock = self._idle.pop()
            if _is_open(sock):
                sock.settimeout(None)
                return sock
            sock.close()
        return None

    def _connect(self, timeout_s: float) -> socket.socket:
        """A new connection without a time limit of its own: `Deadlines` has it."""
        limit_s = min(max(timeout_s, _MIN_CONNECT_S), _MAX_CONNECT_S)
        sock = socket.create_connection((self._host, self._port), limit_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self._host)
        sock.settimeout(None)
        return sock

    def _receive(self, sock: socket.socket, reply: "_Reply") -> bool:
        """Read one response; whether the connection can serve another."""
        exchange = reply.exchange
        parser = httptools.HttpResponseParser(reply)
        recv, feed, clock_ns = sock.recv, parser.feed_data, self._clock_ns
        while not reply.is_complete:
            data = recv(RECV_BYTES)
            if not data:
                if not reply.ends_with_connection:
                    raise ConnectionResetError("connection closed by the server")
                break
            reply.now_ns = clock_ns()
            try:
                feed(data)
            finally:
                if exchange.status is None and reply.has_headers:
                    exchange.status = parser.get_status_code()
        # the parser forgets whether the connection stays once the message is complete
        return parser.get_http_version() == "1.1" and reply.leaves_open


def _header_lines(headers: Mapping[str, str]) -> str:
    """The headers as they are sent. Raises ConfigError, which keeps the values to itself."""
    for name, value in headers.items():
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigError(
                f"header {name}: need Latin-1 without line breaks or control characters, "
                "have others: mend the API key, the session ids or whatever it is made of"
            )
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def auth_headers(api_key_env: str | None) -> dict[str, str]:
    """The header that carries the API key. Raises ConfigError if the variable is not set."""
    if api_key_env is None:
        return {}
    if api_key_env not in os.environ:
        raise ConfigError(f"target.api_key_env: set {api_key_env}, or make it null")
    return {"Authorization": f"Bearer {os.environ[api_key_env]}"}


class _Reply:
    """Callbacks of the HTTP parser: fills the exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.now_ns = 0
        """When the last bytes came."""
        self.has_headers = False
        self.is_complete = False

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection ends the body."""
        headers = self.exchange.headers
        has_length = "content-length" in headers or "transfer-encoding" in headers
        return self.has_headers and not has_length

    @property
    def leaves_open(self) -> bool:
        """Whether another request may follow on the connection."""
        is_closing = "close" in self.exchange.headers.get("connection", "").lower()
        return self.is_complete and not self.ends_with_connection and not is_closing

    def on_header(self, name: bytes, value: bytes) -> None:
        self.exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.has_headers = True

    def on_body(self, body: bytes) -> None:
        self.exchange.pieces.append((self.now_ns, body))

    def on_message_complete(self) -> None:
        self.is_complete = True


def _is_open(sock: socket.socket) -> bool:
    """Whether an idle connection still stands: an end of file or stray bytes mean no."""
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False


def _transport_error(
    sock: socket.socket | None, exchange: Exchange, error: OSError
) -> tuple[ErrorClass, str]:
    if sock is None:
        return ErrorClass.CONNECT, str(error)
    if exchange.status is None:
        return ErrorClass.CLOSED, str(error)
    return ErrorClass.TRUNCATED, str(error)
