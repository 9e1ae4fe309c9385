"""The load client on real sockets: what it stamps, when it gives up, what it calls a failure.

The same tests run a second time under gevent, as the load process does: see the last one.
"""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.drive.client import Exchange, HttpTarget
from loadtests.drive.outcome import Arrival
from loadtests.records.record import ErrorClass, RequestRecord
from serve_app.domain.errors import ConfigError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null}]}\n\n'
END = (
    b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
UNDER_GEVENT = "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched(
    "socket"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Peer:
    """The server's side of one connection, which the test scripts."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def request(self) -> bytes:
        """The next request of at most one segment; empty when the client has left."""
        try:
            return self.sock.recv(65536)
        except OSError:
            return b""

    def say(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.sock.sendall(piece)
            time.sleep(pause_s)


class Server:
    """Each connection is one call of `talk`; the connection closes when it returns."""

    def __init__(self, talk: Callable[[Peer], None], tls: ssl.SSLContext | None) -> None:
        self.n_connections = 0
        self._talk = talk
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.n_connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with self._tls.wrap_socket(sock, server_side=True) if self._tls else sock as wrapped:
                self._talk(Peer(wrapped))
        except OSError:  # the client left first
            sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def serving(talk: Callable[[Peer], None], tls: ssl.SSLContext | None = None):
    server = Server(talk, tls)
    target = HttpTarget(f"{'https' if tls else 'http'}://localhost:{server.port}")
    try:
        yield server, target
    finally:
        target.close()
        server.close()


def ask(target: HttpTarget, timeout_s: float = 5.0) -> Exchange:
    return target.exchange(target.request("POST", "/v1/chat/completions", b"{}"), timeout_s)


def recorded(exchange: Exchange) -> RequestRecord:
    arrival = Arrival(
        cell=1, index=2, worker=3, variant="a", phase="measured", t_sched_ns=5, max_tokens=2
    )
    return arrival.record(exchange, start_ns=exchange.t_send_ns - 7)


def whole(*parts: bytes) -> bytes:
    return CHUNKED + b"".join(chunk(part) for part in parts) + b"0\r\n\r\n"


def test_tokens_are_stamped_as_they_come_and_times_count_from_the_cells_start():
    def talk(peer: Peer) -> None:
        peer.request()
        peer.say(CHUNKED, chunk(TOKEN), chunk(TOKEN), pause_s=0.08)
        peer.say(chunk(END) + b"0\r\n\r\n")

    with serving(talk) as (_, target):
        record = recorded(ask(target))
    assert record.error is None
    assert (record.cell, record.index, record.worker, record.t_sched_ns) == (1, 2, 3, 5)
    assert record.t_send_ns == 7
    assert 0.07 < (record.t_first_ns - record.t_send_ns) / 1e9 < 0.5
    assert record.event_us[0] == 0
    assert 60_000 < record.event_us[1] < 500_000
    assert record.t_last_ns - record.t_first_ns == pytest.approx(record.event_us[1] * 1e3, abs=1e3)
    assert record.t_end_ns > record.t_last_ns
    assert (record.output_tokens, record.prompt_tokens) == (2, 3)
    assert record.finish_reason == "length"


def test_one_connection_serves_request_after_request_however_the_bytes_are_cut():
    answer = whole(TOKEN, TOKEN + END)

    def talk(peer: Peer) -> None:
        for n_bytes in (len(answer), 1000, 7, 1):
            if peer.request():
                pieces = [answer[i : i + n_bytes] for i in range(0, len(answer), n_bytes)]
                peer.say(*pieces)

    with serving(talk) as (server, target):
        for _ in range(4):
            exchange = ask(target)
            record = recorded(exchange)
            assert exchange.body == TOKEN + TOKEN + END
            assert (record.error, len(record.event_us), record.output_tokens) == (None, 2, 2)
    assert server.n_connections == 1


def test_requests_at_once_have_connections_of_their_own():
    def talk(peer: Peer) -> None:
        while peer.request():
            time.sleep(0.2)
            peer.say(whole(TOKEN, TOKEN, END))

    with serving(talk) as (server, target):
        seen: list[Exchange] = []
        asking = [threading.Thread(target=lambda: seen.append(ask(target))) for _ in range(5)]
        start_s = time.monotonic()
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert time.monotonic() - start_s < 0.8
        assert [recorded(exchange).error for exchange in seen] == [None] * 5
        assert recorded(ask(target)).error is None
    assert server.n_connections == 5


def test_a_body_may_have_a_length_or_end_with_the_connection():
    body = TOKEN + TOKEN + END

    def talk(peer: Peer) -> None:
        peer.request()
        peer.say(HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body)
        if peer.request():
            peer.say(HEAD + b"Connection: close\r\n\r\n", body)

    with serving(talk) as (server, target):
        assert ask(target).body == body
        closing = ask(target)
        assert closing.body == body
        assert recorded(closing).error is None
        ask(target)
    assert server.n_connections == 2


@pytest.mark.parametrize(
    ("said", "error", "status"),
    [
        (b"", ErrorClass.CLOSED, None),
        (b"HTTP/1.1 200 OK\r\nTransfer-", ErrorClass.CLOSED, None),
        (b"SSH-2.0-OpenSSH\r\n", ErrorClass.MALFORMED, None),
        (CHUNKED + chunk(TOKEN), ErrorClass.TRUNCATED, 200),
        (CHUNKED + chunk(TOKEN + END), ErrorClass.TRUNCATED, 200),  # its last chunk is missing
        (whole(TOKEN), ErrorClass.TRUNCATED, 200),  # whole for HTTP, without its end mark
        (HEAD + b"Connection: close\r\n\r\n" + TOKEN, ErrorClass.TRUNCATED, 200),
        (HEAD + b"Content-Length: 999\r\n\r\n" + TOKEN + END, ErrorClass.TRUNCATED, 200),
        (CHUNKED + b"xyz\r\n", ErrorClass.MALFORMED, 200),
        (whole(b"data: {oops\n\n", END), ErrorClass.MALFORMED, 200),
        (whole(END), ErrorClass.EMPTY, 200),
        (whole(TOKEN, b'data: {"error":{"message":"boom"}}\n\n'), ErrorClass.STREAM_ERROR, 200),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 2\r\n\r\nno", ErrorClass.RATE_LIMITED, 429),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", ErrorClass.UNAVAILABLE, 503),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", ErrorClass.HTTP_5XX, 500),
        (b"HTTP/1.1 404 Oh\r\nContent-Length: 2\r\n\r\nno", ErrorClass.HTTP_4XX, 404),
    ],
)
def test_what_is_no_answer_is_a_failure_of_its_class(said, error, status):
    def talk(peer: Peer) -> None:
        peer.request()
        peer.say(said)

    with serving(talk) as (_, target):
        record = recorded(ask(target))
    assert (record.error, record.status) == (error, status)
    assert record.t_end_ns >= record.t_send_ns
    if status in {404, 429, 500, 503}:
        assert record.detail == "no"


def test_an_idle_connection_that_the_server_closed_is_not_used():
    def talk(peer: Peer) -> None:
        peer.request()
        peer.say(whole(TOKEN, END))

    with serving(talk) as (server, target):
        for _ in range(3):
            assert recorded(ask(target)).error is None
            time.sleep(0.05)
    assert server.n_connections == 3


def close_after_the_request(peer: Peer) -> None:
    peer.request()
    peer.say(whole(TOKEN, TOKEN, END))
    peer.request()  # the client finds the connection open, and gets no byte on it


def test_a_connection_that_closes_under_a_request_is_replaced_once():
    with serving(close_after_the_request) as (server, target):
        assert recorded(ask(target)).error is None
        exchange = ask(target)
        assert recorded(exchange).error is None
        assert exchange.t_end_ns > exchange.t_send_ns
        assert server.n_connections == 2

    def refuse_all_but_the_first(peer: Peer) -> None:
        if server.n_connections == 1:
            close_after_the_request(peer)
        else:
            peer.request()

    with serving(refuse_all_but_the_first) as (server, target):
        assert recorded(ask(target)).error is None
        assert recorded(ask(target)).error is ErrorClass.CLOSED
        assert server.n_connections == 2


@pytest.mark.parametrize(
    ("said", "n_connections"), [((), 2), ((b"HTTP/1.1 200 OK\r\nTransfer-",), 1)]
)
def test_only_a_request_without_any_answer_goes_out_again_and_its_time_counts_from_the_first(
    said, n_connections
):
    def talk(peer: Peer) -> None:
        peer.request()
        peer.say(whole(TOKEN, TOKEN, END))
        peer.request()
        time.sleep(0.2)
        peer.say(*said)

    with serving(talk) as (server, target):
        ask(target)
        exchange = ask(target)
    assert server.n_connections == n_connections
    assert exchange.error is (None if n_connections == 2 else ErrorClass.CLOSED)
    assert (exchange.t_end_ns - exchange.t_send_ns) / 1e9 > 0.19


def test_a_header_that_would_break_the_request_is_refused_without_its_value():
    for value in ("secret\n", "se\rcret", "secret\u0142", "secret\x00"):
        with pytest.raises(ConfigError, match="header x-session-id: need Latin-1") as refused:
            HttpTarget("http://x").request("POST", "/", b"", {"x-session-id": value})
        assert "se" + "cret" not in str(refused.value)
        with pytest.raises(ConfigError, match="header Authorization: need Latin-1"):
            HttpTarget("http://x", {"Authorization": f"Bearer {value}"})
    sent = HttpTarget("http://x").request("POST", "/", b"", {"x-session-id": "caf\xe9 \t~"})
    assert b"x-session-id: caf\xe9 \t~\r\n" in sent


def trickle(peer: Peer) -> None:
    peer.request()
    peer.say(CHUNKED)
    while True:  # until the client leaves
        peer.say(chunk(TOKEN), pause_s=0.05)


def say_nothing(peer: Peer) -> None:
    while peer.request():
        pass


def say_head_only(peer: Peer) -> None:
    peer.request()
    peer.say(CHUNKED)
    peer.request()


@pytest.mark.parametrize("talk", [say_nothing, say_head_only, trickle])
def test_a_request_is_over_at_its_deadline_whatever_comes_until_then(talk):
    with serving(talk) as (_, target):
        exchange = ask(target, timeout_s=0.4)
        ask_again = ask(target, timeout_s=0.2)
    assert exchange.error is ask_again.error is ErrorClass.TIMEOUT
    assert 0.4 <= (exchange.t_end_ns - exchange.t_send_ns) / 1e9 < 0.9
    assert 0.2 <= (ask_again.t_end_ns - ask_again.t_send_ns) / 1e9 < 0.7
    assert (len(recorded(exchange).event_us) >= 2) == (talk is trickle)


def test_deadlines_of_many_requests_are_each_their_own():
    with serving(say_nothing) as (_, target):
        limits_s = [0.6, 0.2, 0.4, 5.0]
        seen: dict[float, Exchange] = {}

        def wait(limit_s: float) -> None:
            seen[limit_s] = ask(target, limit_s)

        waiting = [threading.Thread(target=wait, args=(each,), daemon=True) for each in limits_s]
        for thread in waiting:
            thread.start()
            time.sleep(0.02)  # the watch is already asleep until the later deadline
        for thread in waiting[:3]:
            thread.join(3)
        took_s = {limit: (e.t_end_ns - e.t_send_ns) / 1e9 for limit, e in seen.items()}
    assert sorted(took_s) == [0.2, 0.4, 0.6]
    assert all(limit <= took < limit + 0.35 for limit, took in took_s.items())


def test_a_connection_outlives_the_deadline_of_a_request_that_was_in_time():
    def talk(peer: Peer) -> None:
        while peer.request():
            time.sleep(0.15)
            peer.say(whole(TOKEN, END))

    with serving(talk) as (server, target):
        for _ in range(4):  # 0.6 s in all
            assert recorded(ask(target, timeout_s=0.3)).error is None
    assert server.n_connections == 1


def test_a_closed_target_leaves_no_thread_and_can_be_used_again():
    def talk(peer: Peer) -> None:
        while peer.request():
            peer.say(whole(TOKEN, END))

    n_threads = threading.active_count()
    with serving(talk) as (_, target):
        for _ in range(2):
            assert recorded(ask(target)).error is None
            target.close()
        assert ask(target).error is None
    until_s = time.monotonic() + 3
    while threading.active_count() > n_threads and time.monotonic() < until_s:
        time.sleep(0.01)
    assert threading.active_count() <= n_threads


def test_where_nobody_listens_there_is_no_connection():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    record = recorded(ask(HttpTarget(f"http://127.0.0.1:{port}")))
    assert (record.error, record.status) == (ErrorClass.CONNECT, None)


def test_a_server_that_does_not_even_accept_is_no_connection():
    """Its queue of connections is full, so the kernel leaves ours unanswered."""
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        time.sleep(0.05)
        exchange = ask(HttpTarget(f"http://127.0.0.1:{full.getsockname()[1]}"), timeout_s=0.3)
    assert exchange.error is ErrorClass.CONNECT
    assert 0.3 <= (exchange.t_end_ns - exchange.t_send_ns) / 1e9 < 0.8


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context; its certificate is trusted by clients that are made from now on."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    make += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(make, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_tls_is_stamped_reused_and_timed_out_like_any_other(tls):
    def talk(peer: Peer) -> None:
        for _ in range(2):
            peer.request()
            peer.say(CHUNKED, chunk(TOKEN), pause_s=0.08)
            peer.say(chunk(END) + b"0\r\n\r\n")
        peer.request()
        peer.request()

    with serving(talk, tls) as (server, target):
        for _ in range(2):
            record = recorded(ask(target))
            assert record.error is None
            assert (record.t_first_ns - record.t_send_ns) / 1e9 > 0.07
        late = ask(target, timeout_s=0.3)
    assert late.error is ErrorClass.TIMEOUT
    assert 0.3 <= (late.t_end_ns - late.t_send_ns) / 1e9 < 0.8
    assert server.n_connections == 1


def test_a_certificate_that_nobody_trusts_is_no_connection(tls, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with serving(say_nothing, tls) as (_, target):
        assert ask(target).error is ErrorClass.CONNECT


@pytest.mark.skipif(UNDER_GEVENT, reason="this is the run under gevent")
def test_all_of_this_holds_under_gevent():
    command = [sys.executable, "-m", "gevent.monkey", "--module", "pytest", "-q", __file__]
    command += ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout"]
    command += ["-o", "addopts=", "-W", "ignore"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
