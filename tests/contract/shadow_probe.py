"""What mirroring costs: `python -m tests.contract.shadow_probe` prints decision 0020's figures.

The variants run in a process of their own; the router's loop is this process's.
"""

import asyncio
import multiprocessing
import statistics
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from serve_app.config.shadow import ShadowConfig
from serve_app.engines.fake_wire import Answer, StreamChunks, StreamOptions, full_body
from serve_app.serving import shadow_compare
from serve_app.serving.relay import IngressRelay
from serve_app.serving.router_app import RouterApp
from serve_app.serving.shadow import Shadow
from serve_app.serving.shadow_compare import End, Pair, compare
from serve_app.serving.shadow_request import Asked, Original
from tests.contract.test_shadow_faults import (
    BODY,
    Ingress,
    configure,
    never,
    router_over,
    streamed,
)
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import recording_meters
from tests.fakes.raw_server import Peer
from tests.fakes.shadow_metrics import RecordingShadowMetrics

SCOPE = {"method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}
N_TOKENS, GAP_S = 64, 0.005


def answer_of(n_tokens: int, seed: int = 0) -> Answer:
    return Answer("chat", "chatcmpl-0123456789abcdef", 0, "m", 5, n_tokens, "length", seed)


def pieces_of(n_tokens: int) -> list[bytes]:
    answer = answer_of(n_tokens)
    chunks = StreamChunks(answer, StreamOptions(include_usage=True))
    return [*chunks.opening(), *map(chunks.token, range(n_tokens)), *chunks.closing()]


def pair_of(pieces: list[bytes]) -> Pair:
    end = End(200, 0.1, 1.0)
    original = Original("r", "a", SCOPE, b"{}")
    return Pair(original, Asked(), "b", end, pieces, end, list(pieces))


def per_call_us(call: Callable[[], object], n: int) -> float:
    return min(timeit.repeat(call, number=n, repeat=5)) / n * 1e6


async def hot_path() -> None:
    print("\n## On the primary's way, us per call (best of 5)")
    shadow = Shadow(None, RecordingShadowMetrics())  # type: ignore[arg-type]
    body = b'{"model": "m", "temperature": 0, "prompt": "%s"}' % (b"x" * 2000)
    tap = lambda: shadow.tap("request-1", SCOPE, body, "a")  # noqa: E731
    print(f"tap, not configured: {per_call_us(tap, 10_000):.2f}")
    shadow.configure(ShadowConfig(variant="b", share_bp=1))
    print(f"tap, not chosen: {per_call_us(tap, 10_000):.2f}")
    shadow.configure(ShadowConfig(variant="b", share_bp=10_000, max_held_bytes=10**12))
    ids = iter(range(10**9))
    print(
        "tap, chosen: "
        f"{per_call_us(lambda: shadow.tap(f'r{next(ids)}', SCOPE, body, 'a'), 2_000):.2f}"
    )
    one = shadow.tap("again", SCOPE, body, "a")
    shadow.begin = lambda tap: None  # type: ignore[method-assign]
    print(f"piece: {per_call_us(lambda: one.piece(b'x'), 10_000):.2f}")
    shadow.close()


def comparison() -> None:
    print("\n## One comparison of two chat answers, ms (best of 5)")
    for n in (16, 128, 512, 2_048, 8_192):
        events = pair_of(pieces_of(n))
        whole = pair_of([full_body(answer_of(n))])
        size = sum(map(len, events.primary))
        events_ms, whole_ms = (
            per_call_us(lambda pair=pair: compare(pair), 5) / 1e3 for pair in (events, whole)
        )
        print(f"{n} tokens: stream ({size} bytes) {events_ms:.2f}, whole {whole_ms:.3f}")
    text = b'{"choices": [{"text": "%s"}]}' % (b"Well, 3.5 words. " * 15_000)
    longest = pair_of([text])
    print(f"whole, {len(text)} bytes: {per_call_us(lambda: compare(longest), 1) / 1e3:.1f}")


async def lag(name: str, work: Callable[[], object]) -> None:
    """How late the loop is for a 1 ms timer while comparisons run one after the other."""
    late_ms = []
    until_s = time.perf_counter() + 4
    running = asyncio.ensure_future(_repeat(work, until_s))
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        await asyncio.sleep(0.001)
        late_ms.append((time.perf_counter() - began_s) * 1e3 - 1)
    n = await running
    late_ms.sort()
    p50, p99 = (late_ms[int(len(late_ms) * q)] for q in (0.5, 0.99))
    print(f"{name}: P50 {p50:.2f}, P99 {p99:.2f}, most {late_ms[-1]:.2f} ms; {n} comparisons")


async def _repeat(work: Callable[[], object], until_s: float) -> int:
    n = 0
    while time.perf_counter() < until_s:
        made = work()
        if asyncio.iscoroutine(made):
            await made
        await asyncio.sleep(0.002)
        n += 1
    return n


async def lags() -> None:
    print("\n## Lateness of the loop while answers of 512 tokens are compared without end")
    pair = pair_of(pieces_of(512))
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)

    async def in_thread() -> None:
        await loop.run_in_executor(thread, compare, pair)

    await lag("no comparison", lambda: None)
    await lag("in the loop", lambda: compare(pair))
    await lag("in a thread that breathes (ours)", in_thread)
    breathe, shadow_compare.breathe = shadow_compare.breathe, lambda: None
    await lag("in a thread that does not", in_thread)
    shadow_compare.breathe = breathe


def serve_variants(pipe: Connection) -> None:
    async def answered(peer: Peer) -> None:
        head, *rest = streamed(*pieces_of(N_TOKENS))
        await peer.say(head)
        for piece in rest:
            await asyncio.sleep(GAP_S)
            await peer.say(piece)

    async def run() -> None:
        ingress = Ingress()
        ingress.scripts = {"a": answered, "b": answered, "hangs": never}
        async with ingress.server:
            pipe.send(ingress.server.port)
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)

    asyncio.run(run())


async def clients(n: int, router: RouterApp, n_each: int) -> tuple[list[float], list[float]]:
    """TTFT and duration of each request, in ms."""
    first_ms, whole_ms = [], []

    async def client() -> None:
        for _ in range(n_each):
            exchange = Exchange(router, "POST", "/v1/completions", BODY)
            began_s = time.perf_counter()
            task = exchange.start()
            await exchange.sent(2)
            first_ms.append((time.perf_counter() - began_s) * 1e3)
            await task
            whole_ms.append((time.perf_counter() - began_s) * 1e3)

    await asyncio.gather(*(client() for _ in range(n)))
    return first_ms, whole_ms


async def primary(port: int, n_clients: int) -> None:
    print(
        f"\n## The primary's answers of {N_TOKENS} tokens, {n_clients} clients, ms; "
        "5 rounds in turns"
    )
    relay = IngressRelay(f"http://127.0.0.1:{port}", "0123456789abcdef")
    router = router_over(relay, recording_meters())
    whole = {"variant": "b", "share_bp": 10_000}
    settings: dict[str, dict[str, object] | None] = {
        "not configured": None,
        "not configured (again)": None,
        "5 %": whole | {"share_bp": 500},
        "100 %, 4 at once": whole,
        "100 %, 64 at once": whole | {"max_concurrent": 64},
        "100 %, hangs": whole | {"variant": "hangs"},
    }
    found: dict[str, list[list[float]]] = {name: [[], [], []] for name in settings}
    for _ in range(5):
        for name, config in settings.items():
            configure(router, config)
            began_s = time.process_time()
            times = await clients(n_clients, router, 6)
            found[name][2].append((time.process_time() - began_s) / (n_clients * 6) * 1e3)
            for into, values in zip(found[name], times, strict=False):
                into += values
            configure(router, None)
            await asyncio.sleep(0.3)
    for name, (first, to_end, cpu) in found.items():
        quantiles = statistics.quantiles(first, n=100), statistics.quantiles(to_end, n=100)
        print(
            f"{name}: TTFT P50 {quantiles[0][49]:.2f} P99 {quantiles[0][98]:.2f}, "
            f"whole P50 {quantiles[1][49]:.1f} P99 {quantiles[1][98]:.1f}, "
            f"CPU {statistics.median(cpu):.2f} a request"
        )
    router.close()


async def main(port: int) -> None:
    await hot_path()
    comparison()
    await lags()
    for n in (1, 16):
        await primary(port, n)


if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve_variants, args=(theirs,))
    process.start()
    asyncio.run(main(ours.recv()))
    ours.send(None)
    process.join()
