"""Mirroring by a whole router to variants on sockets: what a client notices of a bad candidate.

Variants and the ingress before them are scripted byte by byte; the client is in this process.
"""

import asyncio
import gc
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict

import psutil
import pytest

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.routing.shadowing import Drop
from serve_app.serving.relay import IngressRelay
from serve_app.serving.router_app import RouterApp
from serve_app.telemetry.meters import Meters
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import recording_meters
from tests.fakes.raw_server import Peer, RawServer, answer, chunked
from tests.fakes.relay import FakeApplications, FakeSleepers, card_of

BODY = {"model": "m", "prompt": "p", "temperature": 0, "stream": True}
MARK = b"x-variant: any"
N_EVENTS = 20
GAP_S = 0.001
Script = Callable[[Peer], Awaitable[object]]


def event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def events_of(*texts: str) -> list[bytes]:
    return [*map(event, texts), event("", "stop"), b"data: [DONE]\n\n"]


ANSWER = events_of(*(f" word-{i}" for i in range(N_EVENTS)))


def streamed(*events: bytes, end: bool = True) -> list[bytes]:
    head, *rest = chunked(*events, end=end)
    kind = b"\r\ncontent-type: text/event-stream\r\n" + MARK + b"\r\n\r\n"
    return [head.replace(b"\r\n\r\n", kind), *rest]


async def stream(peer: Peer, *events: bytes, end: bool = True) -> None:
    for piece in streamed(*events, end=end):
        await peer.say(piece)
        await asyncio.sleep(GAP_S)


async def whole_answer(peer: Peer) -> None:
    await stream(peer, *ANSWER)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it is not so for ever")


class Ingress:
    """The node's ingress with two variants behind it; `scripts["b"]` is the candidate's."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {"a": whole_answer, "b": whole_answer}
        self.gone: list[str] = []
        self.asked: list[str] = []
        self.server = RawServer(self._talk)

    async def _talk(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            _, _, name, rest = request.split(b" ", 2)[1].decode().split("/", 3)
            if rest == "quantile/card":
                await peer.say(answer(json.dumps(asdict(card_of(name))).encode(), MARK))
                self.server.requests.remove(request)
                continue
            self.asked.append(name)
            await self.scripts[name](peer)

    async def hang(self, peer: Peer) -> None:
        self.gone.append(await peer.gone())

    def requests_to(self, name: str) -> list[bytes]:
        return [each for each in self.server.requests if f"/variants/{name}/".encode() in each]


def router_over(relay: IngressRelay, meters: Meters) -> RouterApp:
    """A whole router; all that is asked for by the alias goes to `a`."""
    args = RouterArgs(model="m", probe_interval_s=600)
    return RouterApp(args, relay, meters, FakeApplications(), FakeSleepers())


def configure(router: RouterApp, shadow: dict[str, object] | None) -> None:
    """As `serve deploy` does it."""
    split = {"a": 10_000, "b": 0, "hangs": 0}
    router.configure(RouterUserConfig.model_validate({"split": split, "shadow": shadow}))


class Bench:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress
        self.relay = IngressRelay(f"http://127.0.0.1:{ingress.server.port}", "0123456789abcdef")
        meters = recording_meters()
        self.metrics = meters.shadow
        self.router = router_over(self.relay, meters)
        configure(self.router, None)
        self.shadow = self.router._path._served["m"].shadow

    def mirror(self, **settings: object) -> None:
        values = {"variant": "b", "share_bp": 10_000, "pause_after_failures": 1_000, **settings}
        configure(self.router, values)

    async def ask(self, body: object = None, path: str = "/v1/completions") -> tuple[bytes, float]:
        """One request: the client's bytes, and its seconds."""
        exchange = Exchange(self.router, "POST", path, BODY if body is None else body)
        began_s = time.perf_counter()
        await exchange()
        assert exchange.status == 200
        return exchange.body, time.perf_counter() - began_s

    async def rest(self) -> None:
        shadow = self.shadow
        await until(lambda: not (shadow._live or shadow._tasks or shadow._work._n_waiting))

    @property
    def view(self) -> dict:
        view = self.shadow.view()
        assert view is not None
        return view


@pytest.fixture
async def bench() -> Iterator[Bench]:
    ingress = Ingress()
    async with ingress.server:
        bench = Bench(ingress)
        yield bench
        bench.router.close()
        await bench.rest()
        assert bench.shadow._held.n_bytes == 0


async def test_the_candidate_gets_a_marked_copy_and_its_answer_is_compared(bench, tmp_path):
    path = tmp_path / "shadow.jsonl"
    bench.mirror(log={"path": str(path)})

    async def other(peer: Peer) -> None:
        await stream(peer, *events_of(*(f" word-{i}" for i in range(N_EVENTS // 2)), " else"))

    bench.ingress.scripts["b"] = other
    body, _ = await bench.ask({**BODY, "model": "m@a"})
    await bench.rest()
    assert body == b"".join(ANSWER)
    (to_a,), (to_b,) = bench.ingress.requests_to("a"), bench.ingress.requests_to("b")
    assert b"x-quantile-shadow" not in to_a
    assert b"\r\nx-quantile-shadow: 1\r\n" in to_b
    assert b"\r\nx-request-timeout-ms: 120000\r\n" in to_b
    assert json.loads(to_b.partition(b"\r\n\r\n")[2]) == BODY
    assert bench.view["means"]["word_prefix"] == 0.5
    assert bench.view["means"]["length_ratio"] == 11 / 20
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["outcome"] == "compared"
    assert 0 < line["shadow"]["ttft_s"] < line["shadow"]["duration_s"]


async def test_a_mirrored_request_that_comes_to_a_router_is_not_mirrored_again(bench):
    """A candidate may be another router: its client is then a shadow."""
    bench.mirror()
    headers = [("x-quantile-shadow", "1")]
    await Exchange(bench.router, "POST", "/v1/completions", BODY, headers)()
    await bench.rest()
    assert bench.ingress.asked == ["a"]
    assert bench.metrics.why() == {"is_mirror": 1}
    assert b"x-quantile-shadow" not in bench.ingress.requests_to("a")[0]


async def flood(peer: Peer) -> None:
    await peer.say(*streamed(end=False))
    try:
        while True:
            await peer.say(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    except ConnectionError:
        pass


async def drip(peer: Peer) -> None:
    await peer.say(*streamed(end=False))
    try:
        while True:
            await peer.say(b"1\r\n:\r\n")
            await asyncio.sleep(0.005)
    except ConnectionError:
        pass


async def out_of_memory(peer: Peer) -> None:
    """vLLM when an allocation fails: an answer of 500, and the process is gone."""
    body = b'{"error": {"message": "CUDA out of memory", "code": 500}}'
    await peer.say(answer(body, MARK, status=b"500 Internal Server Error"))
    peer.reset()


async def reset_in_the_middle(peer: Peer) -> None:
    await stream(peer, *ANSWER[:5], end=False)
    peer.reset()


async def no_answer(peer: Peer) -> None:
    peer.close()


async def no_replica(peer: Peer) -> None:
    await peer.say(answer(b"", status=b"503 Service Unavailable"))


async def never(peer: Peer) -> None:
    await peer.gone()


async def nonsense(peer: Peer) -> None:
    await peer.say(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


FAULTS: dict[str, tuple[Script, set[str]]] = {
    "no replica": (no_replica, {"shadow_busy", "shadow_down"}),
    "dead": (no_answer, {"shadow_down"}),
    "hangs": (never, {"shadow_late"}),
    "drips": (drip, {"shadow_late"}),
    "reset": (reset_in_the_middle, {"shadow_cut"}),
    "out of memory": (out_of_memory, {"shadow_failed"}),
    "floods": (flood, {"shadow_too_large"}),
    "nonsense": (nonsense, {"shadow_down"}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_client_notices_nothing_of_a_bad_candidate(bench, fault):
    """Bytes are the same to the last one; times are compared in turns, with and without."""
    bench.ingress.scripts["b"], reasons = FAULTS[fault]
    timeout_s = 0.25 if "shadow_late" in reasons else 5.0
    with_s, without_s = [], []
    for _ in range(8):
        for seconds in (without_s, with_s):
            configure(bench.router, None)
            if seconds is with_s:
                bench.mirror(timeout_s=timeout_s, max_body_bytes=300_000)
            answers = await asyncio.gather(*(bench.ask() for _ in range(3)))
            seconds += [each for _, each in answers]
            assert {body for body, _ in answers} == {b"".join(ANSWER)}
            await bench.rest()
    dropped = bench.metrics.why()
    assert set(dropped) <= reasons
    assert sum(dropped.values()) == 24
    # Who waited for the candidate would wait 0.25 s; a busy machine, or the flood, costs less.
    assert statistics.median(with_s) < statistics.median(without_s) + 0.1


async def test_a_good_candidate_changes_no_byte_under_load(bench):
    bench.mirror(max_concurrent=8, max_queued=64)

    async def client() -> set[bytes]:
        return {(await bench.ask())[0] for _ in range(20)}

    assert await asyncio.gather(*(client() for _ in range(16))) == [{b"".join(ANSWER)}] * 16
    await bench.rest()
    n_mirrored = bench.metrics.mirrored["a", "b", "greedy"]
    assert n_mirrored + sum(bench.metrics.why().values()) == 320
    assert set(bench.metrics.why()) <= {"queue_full", "backlog"}
    assert n_mirrored > 50
    assert bench.view["means"]["exact"] == 1.0
    assert len(bench.ingress.requests_to("b")) >= n_mirrored


async def begin_and_wait(peer: Peer) -> None:
    await stream(peer, ANSWER[0], end=False)
    await peer.gone()


async def test_a_client_that_leaves_stops_the_candidate_too(bench):
    bench.mirror()
    bench.ingress.scripts["a"] = begin_and_wait
    bench.ingress.scripts["b"] = bench.ingress.hang
    exchange = Exchange(bench.router, "POST", "/v1/completions", BODY)
    task = exchange.start()
    await until(lambda: "b" in bench.ingress.asked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bench.rest()
    assert bench.metrics.why() == {"primary_failed": 1}
    await until(lambda: bool(bench.ingress.gone))
    assert bench.ingress.gone == ["reset"]  # the candidate learns at once that nobody listens


async def test_memory_is_bounded_while_the_candidate_hangs_and_10000_requests_pass(bench):
    """Each answer is 20 kB: kept, they would take 200 MB."""
    text = json.dumps({"choices": [{"index": 0, "text": "w" * 20_000}]}).encode()

    async def at_once(peer: Peer) -> None:
        await peer.say(answer(text, MARK))

    bench.ingress.scripts.update(a=at_once, b=never)
    bench.mirror(max_concurrent=4, max_queued=100, max_held_bytes=8 << 20)
    worst: dict[str, int] = {"held_bytes": 0, "running": 0, "queued": 0, "tasks": 0}

    async def client(n: int) -> None:
        for _ in range(n):
            assert (await bench.ask())[0] == text
            view = bench.view | {"tasks": len(bench.shadow._tasks)}
            for name in worst:
                worst[name] = max(worst[name], view[name])

    async def load(n: int) -> int:
        await asyncio.gather(*(client(n // 16) for _ in range(16)))
        bench.ingress.server.requests.clear()
        bench.ingress.asked.clear()
        gc.collect()
        return psutil.Process().memory_info().rss

    warm = await load(1_600)
    grown = await load(8_400) - warm
    assert worst["running"] == worst["tasks"] == 4
    assert worst["queued"] == 100
    assert worst["held_bytes"] < 8 << 20
    assert sum(bench.metrics.why().values()) == 10_000 - 104
    assert grown < 16 << 20, f"grew by {grown} bytes"


def test_every_figure_is_counted_through_ray():
    pytest.importorskip("ray", reason="the router counts through Ray Serve's metrics")
    from serve_app.telemetry.metrics import ServeShadowMetrics

    metrics = ServeShadowMetrics()
    metrics.shadow_mirrored("a", "b", "greedy")
    metrics.shadow_dropped("a", "b", str(Drop.QUEUE_FULL))
    for share in (0.0, 0.5, 1.0):
        metrics.shadow_agreement("a", "b", "word_prefix", share)
    metrics.shadow_length_ratio("a", "b", "word", 0.0)
    metrics.shadow_latency("a", "b", "primary_ttft", 0.0)
    assert metrics._dropped.info["tag_keys"] == ("variant", "shadow", "kind")
