"""What attempts and limits ask of a connection, and an ingress that pauses; real sockets."""

import asyncio
import socket
import time

import pytest

from serve_app.config.resilience import ResilienceConfig, RetryConfig
from serve_app.domain.traffic import RouteDecision, RouteReason
from serve_app.serving.attempts import Attempts
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.limits import AnswerLimits, Ending
from serve_app.serving.passing import pass_on
from serve_app.serving.relay import IngressRelay
from serve_app.serving.upstream import UpstreamTruncatedError
from tests.contract.test_hand_on import Sink, handing_on
from tests.contract.test_upstream import GET, moment, on_every_loop, serving
from tests.fakes.asgi import Exchange
from tests.fakes.metrics import RecordingMetrics
from tests.fakes.raw_server import Peer, RawServer, answer, chunked
from tests.fakes.relay import FakeSleepers

HEAD, PIECE, END = chunked(b"data: 1\n\n")


@on_every_loop
async def test_begun_waits_for_the_first_byte_and_takes_none():
    go_on = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD)
        await go_on.wait()
        await peer.say(PIECE)
        await peer.gone()

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        begun = asyncio.ensure_future(connection.begun())
        await moment()
        assert not begun.done()
        go_on.set()
        await asyncio.wait_for(begun, 1)
        await connection.begun()
        assert await connection.read() == b"data: 1\n\n"
        connection.close()


@on_every_loop
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("said", [HEAD, HEAD + b"9\r\n"])
async def test_what_ends_before_it_began_is_cut_short(how: str, said: bytes):
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await moment()
        getattr(peer, how)()

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        with pytest.raises(UpstreamTruncatedError):
            await connection.begun()
        connection.close()


@on_every_loop
@pytest.mark.parametrize(
    "whole", [answer(b""), HEAD + END, b"HTTP/1.1 204 No Content\r\n\r\n"], ids=str
)
async def test_an_answer_without_a_body_has_begun_and_is_over(whole: bytes):
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(whole)
        await peer.gone()

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        await asyncio.wait_for(connection.begun(), 1)
        assert await connection.read() == b""
        connection.release()


@on_every_loop
async def test_held_back_is_the_sinks_wait_and_not_the_servers():
    sink = Sink()
    async with handing_on(sink) as (server, work):
        await moment()
        answered = handed_on_by(work)
        assert not answered.held_back
        sink.gate.clear()
        server.say(b"one")
        await moment()
        assert answered.held_back
        server.say(b"two")  # waits behind the first, for the task
        await moment()
        assert answered.held_back
        sink.gate.set()
        await moment()
        assert not answered.held_back and sink.seen == [b"one", b"two"]
        server.end()
        await work


def handed_on_by(work: "asyncio.Task[None]"):
    """The connection whose `hand_on` the task runs."""
    return work.get_coro().cr_frame.f_locals["self"]


@on_every_loop
async def test_a_limit_cuts_an_answer_and_the_server_hears_it_at_once():
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    head = HEAD.replace(b"\r\n\r\n", b"\r\ncontent-type: text/event-stream\r\n\r\n")

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(head, PIECE, b"5\r\ndata:")
        gone.set_result(await peer.gone())

    async with serving(talk) as (pool, _):
        connection = await pool.request(GET)
        client, limits = Exchange(None, "POST", "/"), AnswerLimits()
        ending = await pass_on(
            connection,
            client.send,
            "a",
            RouteReason.STICKY,
            [].append,
            limits.begin(0.05),
            "/v1/completions",
        )
        connection.release()
        assert ending is Ending.DEADLINE
        assert client.body.startswith(b'data: 1\n\ndata: {"error":') and client.over
        assert await asyncio.wait_for(gone, 1) == "reset"


async def test_an_ingress_that_starts_anew_costs_no_request():
    """Refused for a moment, as between two processes of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    relay = IngressRelay(f"http://127.0.0.1:{port}", "0123456789abcdef")
    metrics = RecordingMetrics()
    directory = VariantDirectory(relay, 1.0, FakeSleepers())
    attempts = Attempts(relay, directory, metrics, time.perf_counter)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"{}", b"x-variant: a"))
        await writer.drain()
        await reader.read()
        writer.close()

    scope = Exchange(None, "POST", "/v1/completions").scope
    asked = asyncio.create_task(
        attempts.first_answer(RouteDecision("a", RouteReason.PINNED), scope, b"", None)
    )
    await asyncio.sleep(0.02)
    server = await asyncio.start_server(talk, "127.0.0.1", port)
    variant, _, got = await asked
    assert (variant, await got.read(), metrics.retries) == ("a", b"{}", ["a"])
    assert attempts.known_open() == set()
    got.release()
    relay.close()
    server.close()


async def test_a_storm_of_lost_replicas_stays_within_the_budget():
    """Without stand-ins, breaker off: however many requests fail, few are asked again."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answer(status=b"500 Lost"))

    async with RawServer(talk) as server:
        relay = IngressRelay(f"http://127.0.0.1:{server.port}", "0123456789abcdef")
        metrics = RecordingMetrics()
        directory = VariantDirectory(relay, 1.0, FakeSleepers())
        attempts = Attempts(relay, directory, metrics, time.perf_counter)
        retry = RetryConfig(budget_share=0.2, budget_min_per_s=1.0)
        attempts.configure(ResilienceConfig(breaker=None, retry=retry))
        scope = Exchange(None, "POST", "/v1/completions").scope
        decision = RouteDecision("a", RouteReason.PINNED)
        n_requests = 200
        results = await asyncio.gather(
            *(attempts.first_answer(decision, scope, b"", None) for _ in range(n_requests)),
            return_exceptions=True,
        )
        assert {type(each).__name__ for each in results} == {"VariantUnavailableError"}
        # 0.2 of the requests, and 1 per second for the 10 s of the window.
        asked = [each for each in server.requests if each.startswith(b"POST ")]
        assert len(asked) <= n_requests + 0.2 * n_requests + 10
        assert len(metrics.retries) + len(metrics.refused_retries) == n_requests
        relay.close()
