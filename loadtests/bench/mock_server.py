"""A stand-in for an engine whose times are known: first token, gaps, jitter and freezes are set.

A process of its own; one asyncio protocol and one heap of due events, so that it costs less than
any client. The role goes out at once, as a trap for clients that take it for a token, unless
`--role-with-token`, which is what vLLM does. Every stream's true times go to a log.
"""

import argparse
import asyncio
import gc
import random
import signal
import time
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from pathlib import Path

import httptools
import msgspec

from loadtests.bench.mock_wire import Request, Wire, json_response
from loadtests.records.record import JsonlWriter
from serve_app.domain.units import NS_PER_MS, NS_PER_S

EXAMPLE = "example: python -m loadtests.bench.mock_server --port 9000 --ttft-ms 50 --itl-ms 10"


class SentStream(msgspec.Struct, frozen=True, kw_only=True):
    """What the server did for one request, in `time.monotonic_ns()` of this machine."""

    user: str
    """`user` of the request: by it a client finds its own."""
    received_ns: int
    """When the request was whole."""
    token_ns: tuple[int, ...]
    """Just before each event with a token was handed to the socket."""


@dataclass(frozen=True)
class Times:
    """What the server is told to do."""

    ttft_ms: float
    itl_ms: float
    jitter: float = 0.0
    """Each TTFT and each gap is drawn within this share of its mean."""
    freeze_s: tuple[float, float] | None = None
    """Start, counted from the first request, and length of a time in which the process stands."""
    role_with_token: bool = False


class Engine:
    """Streams by the time of their next event, and the one timer behind them."""

    def __init__(self, times: Times, log: JsonlWriter | None) -> None:
        self._times = times
        self._log = log
        self._wire = Wire()
        self._random = random.Random(0)
        self._heap: list[tuple[int, int, _Stream]] = []
        self._n_streams = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport, request: Request) -> None:
        """Answer a request that has just come."""
        loop = asyncio.get_running_loop()
        if not self._n_streams and self._times.freeze_s:
            start_s, length_s = self._times.freeze_s
            loop.call_later(start_s, time.sleep, length_s)
        self._n_streams += 1
        stream = _Stream(transport, request, self._wire.opening(request.model.partition("@")[2]))
        if not self._times.role_with_token:
            transport.write(stream.opening)
            stream.opening = b""
        due_ns = stream.received_ns + self._draw_ns(self._times.ttft_ms)
        heappush(self._heap, (due_ns, self._n_streams, stream))
        if self._heap[0][2] is stream:
            self._set_timer()

    def _draw_ns(self, mean_ms: float) -> int:
        jitter = self._times.jitter
        share = self._random.uniform(1 - jitter, 1 + jitter) if jitter else 1.0
        return round(mean_ms * share * NS_PER_MS)

    def _set_timer(self) -> None:
        """Wake when the first event is due; there is one."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        due_s = self._heap[0][0] / NS_PER_S
        self._timer = loop.call_at(due_s, self._send_due)

    def _send_due(self) -> None:
        heap = self._heap
        while heap and heap[0][0] <= (now_ns := time.monotonic_ns()):
            due_ns, number, stream = heap[0]
            n_sent = len(stream.sent_ns)
            stream.sent_ns.append(now_ns)
            stream.transport.write(stream.opening + self._wire.token(n_sent))
            stream.opening = b""
            if n_sent + 1 < stream.request.n_tokens and not stream.transport.is_closing():
                due_ns += self._draw_ns(self._times.itl_ms)
                heapreplace(heap, (due_ns, number, stream))
            else:
                heappop(heap)
                self._end(stream)
        self._timer = None
        if heap:
            self._set_timer()

    def _end(self, stream: "_Stream") -> None:
        with_usage = stream.request.stream_options.include_usage
        stream.transport.write(self._wire.closing(len(stream.sent_ns), with_usage))
        if self._log is not None:
            self._log.write(
                SentStream(
                    user=stream.request.user,
                    received_ns=stream.received_ns,
                    token_ns=tuple(stream.sent_ns),
                )
            )


class _Stream:
    """One answer on its way."""

    __slots__ = ("opening", "received_ns", "request", "sent_ns", "transport")

    def __init__(self, transport: asyncio.Transport, request: Request, opening: bytes) -> None:
        self.transport = transport
        self.request = request
        self.opening = opening
        self.received_ns = time.monotonic_ns()
        self.sent_ns: list[int] = []


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection; requests are not pipelined."""

    def __init__(self, engine: Engine, models: tuple[str, ...]) -> None:
        self._engine = engine
        self._models = models
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._decoder = msgspec.json.Decoder(Request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, which sets TCP_NODELAY itself."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Part of the request line."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer, and be ready for the next request."""
        url, body, self._url, self._body = self._url, self._body, b"", b""
        if url == b"/v1/models":
            cards = [{"id": name, "object": "model"} for name in self._models]
            self._transport.write(json_response("200 OK", {"object": "list", "data": cards}))
        elif url != b"/v1/chat/completions":
            self._transport.write(json_response("404 Not Found", {"error": url.decode()}))
        else:
            self._chat(body)

    def _chat(self, body: bytes) -> None:
        try:
            request = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            self._transport.write(json_response("400 Bad Request", {"error": str(error)}))
            return
        self._engine.start(self._transport, request)


async def serve(port: int, models: tuple[str, ...], times: Times, log: Path | None) -> None:
    """Answer on 127.0.0.1 until SIGTERM. Prints the port once it listens."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    writer = JsonlWriter(log) if log else None
    engine = Engine(times, writer)
    server = await loop.create_server(
        lambda: Connection(engine, models), "127.0.0.1", port, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await stopped.wait()
    server.close()
    if writer is not None:
        writer.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.mock_server", description=__doc__, epilog=EXAMPLE
    )
    parser.add_argument("--port", type=int, default=0, help="0 (default): any, printed on stdout")
    parser.add_argument("--model", action="append", help="listed name, repeated; default m@a")
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--jitter", type=float, default=0.0, help="share of the means, e.g. 0.3")
    parser.add_argument("--freeze-s", type=float, nargs=2, metavar=("START", "LENGTH"))
    parser.add_argument("--role-with-token", action="store_true")
    parser.add_argument("--log", type=Path, help="JSONL of the true times of every stream")
    args = parser.parse_args()
    freeze_s = tuple(args.freeze_s) if args.freeze_s else None
    times = Times(args.ttft_ms, args.itl_ms, args.jitter, freeze_s, args.role_with_token)
    gc.freeze()
    asyncio.run(serve(args.port, tuple(args.model or ["m@a"]), times, args.log))


if __name__ == "__main__":
    main()
