"""An engine that dies: nobody notices but by the route, it comes back, and nothing is left over.

Only a stream that it had begun is lost, and says so: to its client, and in its trace.
"""

import asyncio
import itertools
import os
import signal
import threading
import time
from collections import Counter

import httpx
import openai
import psutil
import pytest

from tests.engine_cpu.conftest import MODEL
from tests.fakes.serve_client import CHAT, chat, replica_pids, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def engine_core(replica_pid: int) -> psutil.Process:
    """The replica's only child that is no resource tracker. (vLLM's title is not always set.)"""
    children = psutil.Process(replica_pid).children(recursive=True)
    lines = {child: " ".join(child.cmdline()) for child in children}
    engines = [child for child, line in lines.items() if "resource_tracker" not in line]
    assert len(engines) == 1, lines
    return engines[0]


def is_ready(base_url: str, variant: str) -> bool:
    models = httpx.get(f"{base_url}/v1/models").json()["data"]
    return next(entry["ready"] for entry in models if entry.get("variant") == variant)


async def long_stream(base_url: str, trace: str, begun: threading.Event) -> str:
    """How a stream ends that takes ten seconds: `whole`, or by an error with this code."""
    client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
    try:
        async for _ in await client.chat.completions.create(
            **chat(f"{MODEL}@awq", 900),
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
        ):
            begun.set()
    except openai.APIError as error:
        return str(error.code)
    return "whole"


@pytest.mark.parametrize("victim", ["engine", "replica"])
async def test_a_killed_engine_is_replaced_and_requests_go_on(serve, collector, victim):
    trace = f"{0xDEAD + (victim == 'engine'):032x}"
    begun = threading.Event()
    stream = asyncio.create_task(long_stream(serve.base_url, trace, begun))
    (replica_pid,) = replica_pids("awq:VariantServer", serve.pid)
    engine = engine_core(replica_pid)
    statuses: Counter[tuple[int, str]] = Counter()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        headers = {"x-session-id": f"s{number}"}
        answer = await client.post(CHAT, json=chat(MODEL, max_tokens=4), headers=headers)
        statuses[answer.status_code, answer.headers["x-route-reason"]] += 1

    async def load() -> None:
        """Open loop: a request that waits holds no other back."""
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=serve.base_url, timeout=180, limits=limits) as client,
            asyncio.TaskGroup() as requests,
        ):
            for number in itertools.count():
                requests.create_task(ask(client, number))
                await asyncio.sleep(0.1)
                if over.is_set():
                    break

    def kill_and_watch() -> None:
        assert begun.wait(60)
        time.sleep(1)
        os.kill(engine.pid if victim == "engine" else replica_pid, signal.SIGKILL)
        wait_until(lambda: not is_ready(serve.base_url, "awq"), 30, "the router notices")
        wait_until(lambda: not psutil.pid_exists(engine.pid), 30, "no orphan of the engine")
        wait_until(lambda: not psutil.pid_exists(replica_pid), 60, "the replica is replaced")
        wait_until(lambda: is_ready(serve.base_url, "awq"), 180, "the variant is back")

    over = asyncio.Event()
    loading = asyncio.create_task(load())
    try:
        await asyncio.to_thread(kill_and_watch)
    finally:
        over.set()
        await loading
        ended = await stream
    (new_replica_pid,) = replica_pids("awq:VariantServer", serve.pid)
    assert engine_core(new_replica_pid).is_running()
    failed = {key: n for key, n in statuses.items() if key[0] != 200}
    # A request that was in the engine when it was killed may be lost; none that came after.
    assert sum(failed.values()) <= 1, statuses
    assert statuses[200, "fallback"] > 0, statuses
    # vLLM itself would end it in good order, with an error event and `[DONE]`.
    assert ended == "stream_broken"
    expected = {"quantile-router"} | ({"quantile-variant"} if victim == "engine" else set())
    spans = collector.wait_for(
        lambda spans: expected <= {span.service for span in spans if span.trace == trace}
    )
    told = {span.service: span for span in spans if span.trace == trace}
    assert all(told[service].is_error for service in expected)
    assert told["quantile-router"].attributes["quantile.ending"] == "broke_off"
