"""The variant that every way leads to: streams tokens at the pace of a GPU, and costs little.

A process of its own, so that its work is in nobody's figures:
`python -m loadtests.relay_bench.upstream PORT TTFT_MS ITL_MS steps|apart`. It answers as vLLM does:
one server-sent event in one chunk per token, `[DONE]` at the end, and whatever gateways ask of a
worker. An engine that batches ends a step for all its streams at once: `steps` sends the tokens of
all streams at the same moments, each stream's first at its own. `apart` gives each stream moments
of its own, which costs every relay most: each token wakes it alone, with cold caches.
"""

import asyncio
import json
import sys
from typing import Any

import httptools

TOKEN = b" tok"
"""The text of each token; clients count it."""
NAME = "fake"
MODEL = "bench"
CHAT = "/v1/chat/completions"
CARD: dict[str, Any] = {
    "name": NAME,
    "method": "unquantized",
    "scheme": "none",
    "bits": 16,
    "weight_bytes": None,
    "context_length": 8192,
    "engine": "fake",
    "facts": {},
}
_WORKER = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "bench"}],
    "model_path": MODEL,
    "served_model_name": MODEL,
    "is_generation": True,
    "status": "ok",
}


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    """One server-sent event as vLLM writes it."""
    body = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1780000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "delta": delta,
                "logprobs": None,
                "finish_reason": finish,
                "token_ids": None,
            }
        ],
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"x-variant: fake\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ROLE = chunk(event({"role": "assistant", "content": ""}))
_PIECE = chunk(event({"content": TOKEN.decode()}))
_END = chunk(event({}, "stop")) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Steps:
    """The engine's clock: every `itl_s` each running stream gets a token."""

    def __init__(self, itl_s: float) -> None:
        self.running: set[Upstream] = set()
        self._itl_s = itl_s
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time()
        self._step()

    def _step(self) -> None:
        for stream in tuple(self.running):
            stream.token()
        self._due_s += self._itl_s
        self._loop.call_at(self._due_s, self._step)


class Upstream(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    def __init__(self, ttft_s: float, itl_s: float, steps: Steps | None) -> None:
        self._ttft_s, self._itl_s, self._steps = ttft_s, itl_s, steps
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what streams."""
        if self._timer is not None:
            self._timer.cancel()
        if self._steps is not None:
            self._steps.running.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole; whoever tries another protocol is left alone."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            assert self._transport is not None
            self._transport.close()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._path += url

    def on_body(self, body: bytes) -> None:
        """A part of the request's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """The request is whole."""
        path, body = self._path, bytes(self._body)
        self._path = b""
        self._body.clear()
        self._answer(path, body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if not path.endswith(b"/chat/completions"):
            self._say_json(CARD if path.endswith(b"/quantile/card") else _WORKER)
            return
        asked = json.loads(body)
        if not asked.get("stream"):
            self._say_json(_whole(asked))
            return
        # Gateways may rename what they pass on, as OpenAI did.
        self._left = int(asked.get("max_completion_tokens") or asked["max_tokens"])
        self._due_s = self._loop.time() + self._ttft_s
        self._timer = self._loop.call_at(self._due_s, self._first)

    def _first(self) -> None:
        self._write(_HEAD + _ROLE)
        self.token()
        if self._steps is not None and self._left:
            self._steps.running.add(self)

    def token(self) -> None:
        """Send the next token, and what ends the stream after the last."""
        self._left -= 1
        if not self._left:
            self._timer = None
            self._write(_PIECE + _END)
            if self._steps is not None:
                self._steps.running.discard(self)
            return
        self._write(_PIECE)
        if self._steps is None:
            self._due_s += self._itl_s
            self._timer = self._loop.call_at(self._due_s, self.token)

    def _say_json(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-variant: fake\r\n"
        self._write(head + b"content-length: %d\r\n\r\n" % len(data) + data)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)


def _whole(asked: dict[str, Any]) -> dict[str, Any]:
    """An answer without a stream, as gateways ask for when they look at a worker."""
    message = {"role": "assistant", "content": TOKEN.decode()}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1780000000,
        "model": asked.get("model", MODEL),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


async def serve(port: int, ttft_ms: float, itl_ms: float, *, in_steps: bool) -> None:
    """Serve until the process ends; says `ready` once it listens."""
    loop = asyncio.get_running_loop()
    ttft_s, itl_s = ttft_ms / 1e3, itl_ms / 1e3
    steps = Steps(itl_s) if in_steps else None
    server = await loop.create_server(
        lambda: Upstream(ttft_s, itl_s, steps), "127.0.0.1", port, backlog=1024
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


def main(argv: list[str]) -> None:
    """Run on uvloop where there is one: its CPU is taken from the ways that are measured."""
    from loadtests.relay_bench.loop import new_event_loop

    port, ttft_ms, itl_ms, pace = argv
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(int(port), float(ttft_ms), float(itl_ms), in_steps=pace == "steps"))


if __name__ == "__main__":
    main(sys.argv[1:])
