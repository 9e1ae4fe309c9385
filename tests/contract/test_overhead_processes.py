"""The relay benchmark's processes on loopback: upstream, client, one HAProxy pass, CPU time."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from loadtests.relay_bench.client import Task, run
from loadtests.relay_bench.cpu import CpuMeter, process_cpu_ns
from loadtests.relay_bench.figures import figures
from loadtests.relay_bench.nouns import DIRECT, HAPROXY, ROUTER, TRACED, Way
from loadtests.relay_bench.otlp_sink import otlp_sink, spans_in
from loadtests.relay_bench.peers import Peer, environment, install
from loadtests.relay_bench.processes import (
    plain_haproxy,
    run_client,
    running,
    upstream,
    wait_for_port,
)
from loadtests.relay_bench.rounds import Settings, level, rounds, run_round
from loadtests.relay_bench.upstream import CARD, MODEL, NAME, TOKEN
from serve_app.domain.checkpoint import VariantCard
from serve_app.domain.errors import BuildError, InvalidRunError
from serve_app.serving.ports import free_port
from tests.fakes.raw_server import RawServer, answer, chunked
from tests.fakes.serve_client import wait_until

CHAT = "/v1/chat/completions"


def task(port: int, **more) -> Task:
    values = {
        "path": CHAT, "model": MODEL, "clients": 3, "requests": 2, "tokens": 4, "spread_s": 0.02,
        "marker": TOKEN.decode(), "timeout_s": 5.0,
    }  # fmt: skip
    return Task(port=port, **{**values, **more})


@pytest.mark.parametrize("in_steps", [True, False])
def test_a_round_against_the_upstream_and_through_one_haproxy_pass(tmp_path, in_steps):
    with (
        upstream(tmp_path, ttft_ms=20, itl_ms=5, in_steps=in_steps) as port,
        plain_haproxy(tmp_path, port) as (haproxy_port, pid),
    ):
        for at in (port, haproxy_port):
            meter = CpuMeter()
            with meter.measuring([pid]):
                seen = run_client(task(at))
            assert (seen.streams, seen.tokens) == (9, 36)
            assert len(seen.ttfts_s) == 6  # the first of each client opens its connection
            assert all(0.019 < ttft_s < 1 for ttft_s in seen.ttfts_s)
            assert seen.wall_s >= 3 * (0.020 + 2 * 0.005)
            if at == haproxy_port:
                assert meter.cpu_s > 0
        with pytest.raises(InvalidRunError, match="5 tokens came, 4 were asked for"):
            run_client(task(port, marker='"finish_reason":null'))


async def said_by(*pieces: bytes) -> None:
    """Run one client against a server that says this to each request."""

    async def talk(peer) -> None:
        while True:
            await peer.request()
            await peer.say(*pieces)
            if not pieces[-1].endswith(b"0\r\n\r\n"):
                peer.close()

    async with RawServer(talk) as server:
        await run(task(server.port, clients=1, requests=1, timeout_s=0.5))


async def test_answers_that_are_refused_short_or_cut_fail_the_run():
    piece = b"data: " + json.dumps({"content": TOKEN.decode()}).encode() + b"\n\n"
    await said_by(*chunked(*[piece] * 4))
    with pytest.raises(InvalidRunError, match="3 tokens came, 4 were asked for"):
        await said_by(*chunked(*[piece] * 3))
    with pytest.raises(InvalidRunError, match="the connection closed after"):
        await said_by(*chunked(piece, end=False))
    for body in (b"0\r\n\r\n", b"not available"):
        refusal = answer(body, status=b"503 Service Unavailable")
        with pytest.raises(InvalidRunError, match=r"refused: b'HTTP/1\.1 503"):
            await said_by(refusal)


async def test_a_server_that_says_nothing_ends_the_run():
    async def talk(peer) -> None:
        await peer.request()
        await asyncio.sleep(10)

    async with RawServer(talk) as server:
        with pytest.raises(InvalidRunError, match="not done after"):
            await run(task(server.port, timeout_s=0.2))


async def test_a_real_engines_own_usage_counts_its_tokens():
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    seen = []

    async def talk(peer) -> None:
        for _ in range(2):
            seen.append(json.loads((await peer.request()).split(b"\r\n\r\n", 1)[1]))
            await peer.say(*chunked(b'data: {"content": "ab"}\n\n', usage))

    async with RawServer(talk) as server:
        found = await run(task(server.port, clients=1, requests=1, marker=""))
    assert found.tokens == 8
    assert seen[0]["ignore_eos"] is True
    assert seen[0]["stream_options"] == {"include_usage": True}


BURN = """
import sys, threading, time
from serve_app.serving.ports import free_port
def burn():
    until = time.thread_time() + 0.15
    while time.thread_time() < until: pass
input()
threads = [threading.Thread(target=burn) for _ in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
print('burnt', flush=True)
input()
"""


def test_cpu_time_counts_threads_that_have_ended_and_children():
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, BURN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(0.5)
        meter = CpuMeter()
        with meter.measuring([process.pid]):
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "burnt\n"
        assert 0.3 <= meter.cpu_s < 0.6
    finally:
        process.communicate("\n", timeout=10)


def test_a_relay_that_dies_while_it_is_measured_is_no_measurement(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with running(sleep, tmp_path / "log") as process:

        def measure_its_end(meter: CpuMeter) -> None:
            with meter.measuring([process.pid]):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()

        meter = CpuMeter()
        with pytest.raises(InvalidRunError, match="has ended"):
            measure_its_end(meter)
        assert meter.cpu_s is None
        with meter.measuring([process.pid], may_end=True):
            pass
        assert meter.cpu_s == 0.0
        with pytest.raises(ProcessLookupError):
            process_cpu_ns(process.pid)


BURNS_WHEN_TOLD = """
import signal, time
def burn(*_):
    until = time.process_time() + 0.15
    while time.process_time() < until: pass
signal.signal(signal.SIGUSR1, burn)
print('ready', flush=True)
while True: signal.pause()
"""


def test_what_a_relay_puts_off_is_done_and_counted_in_its_round(tmp_path):
    settings = Settings(
        rounds=1, clients=(1,), tokens=3, ttft_ms=5, itl_ms=1, steps=False, peers=False,
        engine=None, engine_config="",
    )  # fmt: skip
    log = tmp_path / "log"
    with (
        running([sys.executable, "-c", BURNS_WHEN_TOLD], log) as relay,
        upstream(tmp_path, settings.ttft_ms, settings.itl_ms) as port,
    ):
        wait_until(lambda: log.read_text() == "ready\n", 10, "its handler is set")

        def after() -> None:
            before_ns = process_cpu_ns(relay.pid)
            relay.send_signal(signal.SIGUSR1)
            wait_until(lambda: process_cpu_ns(relay.pid) > before_ns + 1e8, 10, "it works")

        way = Way(ROUTER, port, CHAT, (relay.pid,), after=after)
        assert run_round(way, level(1, 3), 1, settings).cpu_s > 0.1


def test_spans_are_counted_where_they_arrive(tmp_path):
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    with otlp_sink(tmp_path) as port:
        provider = TracerProvider(resource=Resource.create({"service.name": TRACED}))
        exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        for _ in range(5):
            provider.get_tracer("test").start_span("route m").end()
        assert provider.force_flush(5000)
        assert spans_in(tmp_path) == {TRACED: 5}
        provider.shutdown()


def test_no_processes_cost_nothing_that_could_be_known():
    meter = CpuMeter()
    with meter.measuring([]):
        pass
    assert meter.cpu_s is None


def test_rounds_are_interleaved_and_the_first_is_not_kept(tmp_path):
    settings = Settings(
        rounds=2, clients=(2,), tokens=3, ttft_ms=5, itl_ms=1, steps=True, peers=False, engine=None,
        engine_config="",
    )  # fmt: skip
    with (
        upstream(tmp_path, settings.ttft_ms, settings.itl_ms) as port,
        plain_haproxy(tmp_path, port) as (haproxy_port, pid),
    ):
        ways = [Way(DIRECT, port, CHAT), Way(HAPROXY, haproxy_port, CHAT, (pid,), lambda: (pid,))]
        told: list[str] = []
        samples = [each for found in rounds(ways, settings, told.append) for each in found]
    assert [(each.way, each.round) for each in samples] == [
        (HAPROXY, 1), (DIRECT, 1), (DIRECT, 2), (HAPROXY, 2),
    ]  # fmt: skip
    assert [line.split(":")[0] for line in told] == ["warm-up", "round 1 of 2", "round 2 of 2"]
    found = {(each.way, each.clients): each for each in figures(samples)}
    assert found[HAPROXY, 2].times_haproxy.median == 1.0
    assert found[DIRECT, 2].path_us_per_token is None
    # Here the helper is the same process: it counts twice.
    costs = found[HAPROXY, 2]
    assert costs.path_us_per_token.median > 1.5 * costs.cpu_us_per_token.median > 0


def test_an_environment_that_cannot_be_installed_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
    peer = Peer("nobody's", (str(tmp_path / "missing-1.0-py3-none-any.whl"),))
    for _ in range(2):  # what failed is tried again
        with pytest.raises(BuildError, match="without it, run without --peers"):
            install(peer, tmp_path / "log")
    environment(peer.requirements).joinpath(".ready").touch()
    assert install(peer, tmp_path / "log") == environment(peer.requirements) / "bin" / "python"


def test_a_program_that_does_not_start_says_why(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with running(command, log) as process, pytest.raises(InvalidRunError, match="no such model"):
        wait_for_port(process, free_port(), log)


def test_the_router_can_read_the_upstreams_card():
    assert msgspec.json.decode(json.dumps(CARD).encode(), type=VariantCard).name == NAME


async def test_an_engines_step_ends_for_all_its_streams_at_once(tmp_path):
    """First tokens come at their own time, the others of all streams together."""
    body = json.dumps({"stream": True, "max_tokens": 5, "model": MODEL}).encode()
    request = b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body
    with upstream(tmp_path, ttft_ms=10, itl_ms=100, in_steps=True) as port:

        async def arrivals(delay_s: float) -> list[float]:
            await asyncio.sleep(delay_s)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            times = []
            while piece := await reader.read(65536):
                times += [time.monotonic()] * piece.count(TOKEN)
                if piece.endswith(b"0\r\n\r\n"):
                    break
            writer.close()
            return times

        first, second = await asyncio.gather(arrivals(0), arrivals(0.05))
    assert len(first) == len(second) == 5
    assert second[0] - first[0] > 0.03
    together = [min(abs(a - b) for b in first[1:]) for a in second[1:]]
    assert sorted(together)[2] < 0.02  # three of the four steps have both streams
