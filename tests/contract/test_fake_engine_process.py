"""A fake engine in a process of its own: relayed whole, and seen to die alone."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import EngineError
from serve_app.engines.engine import EngineSpec
from serve_app.engines.fake_engine import start
from tests.fakes.asgi import Exchange

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


@pytest.fixture
async def started():
    engines = []

    async def make(**script):
        fake = {"ttft_ms": 1, "itl_ms": 1, "own_process": True, **script}
        settings = EngineSettings(kind="fake", fake=fake)
        engines.append(await start(EngineSpec(("m",), None, settings)))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.shutdown()
        await engine.shutdown()
        assert not psutil.pid_exists(pid_of(engine))


def pid_of(engine) -> int:
    return int(engine.facts["engine_pid"])


async def taken_by(engine) -> None:
    """Until it works on a request."""
    async with asyncio.timeout(10):
        while not engine.load().running:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


async def test_it_answers_as_the_engine_in_process_does(started):
    engine = await started()
    assert (await Exchange(engine.app, "GET", "/v1/models")()).json["data"][0]["id"] == "m"
    whole = await Exchange(engine.app, "POST", CHAT, BODY)()
    assert whole.json["usage"]["completion_tokens"] == 5
    stream = await Exchange(engine.app, "POST", CHAT, {**BODY, "stream": True})()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert (await Exchange(engine.app, "POST", CHAT, b"{")()).status == 400
    assert (await Exchange(engine.app, "GET", "/nothing")()).status == 404
    assert (engine.alive, engine.load().running) == (True, 0)
    await engine.check_health()


async def test_its_metrics_are_read_as_those_of_any_engine(started):
    engine = await started()
    await Exchange(engine.app, "POST", CHAT, BODY)()
    async with asyncio.timeout(10):
        samples = {sample.name: sample.value for sample in await engine.samples()}
    assert samples["vllm:generation_tokens_total"] == 5


async def test_killed_in_the_middle_of_a_stream(started):
    engine = await started(itl_ms=200)
    exchange = Exchange(engine.app, "POST", CHAT, {**BODY, "stream": True})
    task = exchange.start()
    await exchange.sent(2)
    assert engine.load().running == 1
    os.kill(pid_of(engine), signal.SIGKILL)
    with pytest.raises(EngineError):
        await task
    assert not exchange.over
    assert not engine.alive
    with pytest.raises(EngineError, match="has ended"):
        await engine.check_health()


async def test_killed_before_the_answer_began_is_503(started):
    engine = await started(ttft_ms=10_000)
    exchange = Exchange(engine.app, "POST", CHAT, BODY)
    task = exchange.start()
    await taken_by(engine)
    await asyncio.sleep(0.1)
    os.kill(pid_of(engine), signal.SIGKILL)
    assert (await task).status == 503
    assert not engine.alive
    assert (await Exchange(engine.app, "POST", CHAT, BODY)()).status == 503


async def test_a_client_that_leaves_stops_the_work(started):
    engine = await started(ttft_ms=10_000)
    exchange = Exchange(engine.app, "POST", CHAT, BODY)
    task = exchange.start()
    await taken_by(engine)
    exchange.hung_up.set()
    await asyncio.wait_for(task, 5)
    assert exchange.messages == []
    assert engine.alive


async def test_out_of_memory_ends_the_engine_and_not_the_replica(started):
    engine = await started(faults=[{"kind": "OutOfMemory", "at": 2}])
    assert (await Exchange(engine.app, "POST", CHAT, BODY)()).status == 200
    assert (await Exchange(engine.app, "POST", CHAT, BODY)()).status == 503
    assert not engine.alive


def test_it_goes_with_its_replica():
    code = (
        "import asyncio, sys\n"
        "from serve_app.engines.fake_child import start\n"
        "from serve_app.engines.fake_script import FakeScript\n"
        "async def main():\n"
        "    engine = await start(('m',), FakeScript())\n"
        "    print(engine.facts['engine_pid'], flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as replica:
        assert replica.stdout is not None
        pid = json.loads(replica.stdout.readline())
        assert psutil.pid_exists(pid)
        replica.kill()
    deadline_s = time.monotonic() + 5
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline_s, "the engine outlived its replica"
        time.sleep(0.02)
