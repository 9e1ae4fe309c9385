"""A router replica learns of its end from its own health page, as Serve answers it."""

import asyncio
import logging

import pytest

from serve_app.serving.drain import Drain
from serve_app.serving.limits import AnswerLimits, Ending
from tests.fakes.raw_server import Peer, RawServer, answer

HEALTHY = answer(b"success")
DRAINING = answer(b"DRAINING", status=b"503 Service Unavailable")
ELSEWHERE = answer(b"This node is being drained.", status=b"503 Service Unavailable")


class Replica:
    """A health page that says what it is told, and a drain that watches it."""

    def __init__(self, after_s: float | None = 0.05) -> None:
        self.page = HEALTHY
        self.limits = AnswerLimits()
        self.drain = Drain(self.limits, interval_s=0.01)
        self.drain.after_s = after_s

    async def talk(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            assert request.startswith(b"GET /-/healthz HTTP/1.1\r\nhost: 127.0.0.1:")
            await peer.say(self.page)

    async def __aenter__(self):
        self.server = RawServer(self.talk)
        await self.server.__aenter__()
        self.scope = {"server": ("127.0.0.1", self.server.port)}
        return self

    async def __aexit__(self, *exception) -> None:
        self.drain.close()
        await self.server.__aexit__(*exception)

    async def endless(self) -> Ending | None:
        limit = self.limits.begin()
        try:
            async with limit:
                await asyncio.Event().wait()
        except TimeoutError:
            return limit.ending


async def test_answers_that_outlast_the_drain_are_ended_and_it_is_logged(caplog):
    async with Replica() as replica:
        replica.drain.seen(replica.scope)
        task = asyncio.create_task(replica.endless())
        await asyncio.sleep(0.1)
        assert not replica.drain.is_draining and not task.done()
        replica.page = DRAINING
        with caplog.at_level(logging.WARNING, "ray.serve"):
            assert await asyncio.wait_for(task, 5) is Ending.STOPPED
        assert replica.drain.is_draining and replica.limits.is_stopped
        assert "1 answers still under way" in caplog.text
        assert replica.server.n_connections == 1


async def test_an_answer_that_ends_in_time_is_not_touched():
    async with Replica(after_s=0.3) as replica:
        replica.page = DRAINING
        replica.drain.seen(replica.scope)
        async with replica.limits.begin() as limit:
            await asyncio.sleep(0.1)
        assert limit.ending is None and replica.drain.is_draining


@pytest.mark.parametrize("page", [ELSEWHERE, answer(b"UNHEALTHY", status=b"503 No"), b"nonsense"])
async def test_nothing_else_is_the_replicas_end(page):
    async with Replica(after_s=0.01) as replica:
        replica.page = page
        replica.drain.seen(replica.scope)
        await asyncio.sleep(0.1)
        assert not replica.drain.is_draining and not replica.limits.is_stopped


async def test_a_listener_that_is_closed_says_nothing():
    async with Replica(after_s=0.01) as replica:
        await replica.server.__aexit__(None, None, None)
        replica.drain.seen(replica.scope)
        await asyncio.sleep(0.1)
        assert not replica.limits.is_stopped


async def test_without_a_bound_or_a_port_nobody_asks():
    async with Replica(after_s=None) as replica:
        replica.drain.seen(replica.scope)
        replica.drain.after_s = 1.0
        for scope in ({}, {"server": None}, {"server": ("/a/socket", None)}):
            replica.drain.seen(scope)
        await asyncio.sleep(0.05)
        assert replica.server.n_connections == 0
