"""The load: a closed loop of clients that stream one answer after the other.

Run as a process of its own, so that its work is in nobody's figures:
`python -m loadtests.relay_bench.client PORT` with a `Task` as JSON on its standard input prints
`Seen` as JSON. Clients start evenly spread over the time of one stream, and so stay: a herd that
comes at one instant would measure its own queue. Each keeps its connection.
"""

import asyncio
import json
import re
import sys
import time

import msgspec

from loadtests.relay_bench.loop import new_event_loop
from loadtests.relay_bench.nouns import Seen
from serve_app.domain.errors import InvalidRunError

END = b"0\r\n\r\n"
SENTENCE = "You are a patient assistant who answers in one sentence. "
PROMPT = SENTENCE * 18
"""About a kilobyte, as a short chat has."""
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')


class Task(msgspec.Struct, frozen=True):
    """What to ask, how often, and how an answer's tokens are counted."""

    port: int
    path: str
    model: str
    clients: int
    requests: int
    tokens: int
    spread_s: float
    """Over which the clients start."""
    marker: str
    """Text of each token; empty: the answer's own `usage` counts them."""
    headers: dict[str, str] = {}
    prompt: str = PROMPT
    timeout_s: float = 300.0

    def request(self) -> bytes:
        """The bytes of the request, the same each time."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": True,
            "max_tokens": self.tokens,
        }
        if not self.marker:
            body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/json",
            "authorization": "Bearer none",
            **self.headers,
            "content-length": str(len(data)),
        }
        lines = [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([f"POST {self.path} HTTP/1.1", *lines, "", ""]).encode() + data


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, task: Task, request: bytes, ttfts_s: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tokens = self.streams = 0
        self._marker = task.marker.encode()
        self._first_mark = self._marker or b'"content":'
        self._request = request
        self._left = task.requests + 1
        self._n_tokens = task.tokens
        self._ttfts_s = ttfts_s
        self._seen = bytearray()
        self._sent_s = 0.0
        self._first_s: float | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = transport  # type: ignore[assignment]
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Stamp the first token; at the end of the answer, ask again."""
        self._seen += data
        if self._first_s is None:
            if self._first_mark in self._seen:
                self._first_s = time.perf_counter() - self._sent_s
            elif b"\r\n\r\n" in self._seen and not self._seen.startswith(b"HTTP/1.1 200"):
                self._fail(f"refused: {bytes(self._seen[:600])!r}")
        if self._seen.endswith(END):
            try:
                self._count()
            except InvalidRunError as error:
                self._fail(str(error))
            else:
                self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """No answer may be cut short."""
        self._fail(f"the connection closed after {bytes(self._seen[-200:])!r}")

    def _ask(self) -> None:
        assert self._transport is not None
        self._seen.clear()
        self._first_s = None
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def _count(self) -> None:
        tokens = tokens_of(bytes(self._seen), self._marker)
        if tokens != self._n_tokens:
            said = bytes(self._seen[:400])
            raise InvalidRunError(
                f"{tokens} tokens came, {self._n_tokens} were asked for: {said!r}"
            )
        assert self._first_s is not None
        if self.streams:  # the first opened the connection
            self._ttfts_s.append(self._first_s)
        self.streams += 1
        self.tokens += tokens

    def _go_on(self) -> None:
        self._left -= 1
        if self._left:
            self._ask()
        elif not self.done.done():
            assert self._transport is not None
            self.done.set_result(None)
            self._transport.close()

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(InvalidRunError(reason))
            if self._transport is not None:
                self._transport.abort()


def tokens_of(answer: bytes, marker: bytes) -> int:
    """Tokens in a whole answer, its head included. Raises InvalidRunError for a refusal."""
    if not answer.startswith(b"HTTP/1.1 200"):
        raise InvalidRunError(f"refused: {answer[:600]!r}")
    if marker:
        return answer.count(marker)
    counts = _USAGE.findall(answer)
    return int(counts[-1]) if counts else 0


async def run(task: Task) -> Seen:
    """Run all clients to their end. Raises InvalidRunError when one of them did not get all."""
    loop = asyncio.get_running_loop()
    request = task.request()
    ttfts_s: list[float] = []
    clients: list[Client] = []

    async def one(number: int) -> None:
        await asyncio.sleep(task.spread_s * number / task.clients)
        _, client = await loop.create_connection(
            lambda: Client(task, request, ttfts_s), "127.0.0.1", task.port
        )
        clients.append(client)
        await client.done

    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    try:
        async with asyncio.timeout(task.timeout_s), asyncio.TaskGroup() as group:
            for number in range(task.clients):
                group.create_task(one(number))
    except TimeoutError:
        raise InvalidRunError(f"not done after {task.timeout_s:.0f} s") from None
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return Seen(
        tokens=sum(client.tokens for client in clients),
        streams=sum(client.streams for client in clients),
        ttfts_s=ttfts_s,
        wall_s=time.perf_counter() - start_s,
        cpu_s=time.process_time() - cpu_start_s,
    )


def main() -> None:
    """Read the task, run it, print what was seen; one line on standard error if it failed."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            seen = runner.run(run(task))
        except (InvalidRunError, OSError) as error:
            sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
