"""The console over sockets: its stream, `quantile status`, and a split that Serve's API takes."""

import asyncio
import hashlib
import json

import httpx
import pytest

from serve_app.domain.errors import ConfigError
from serve_app.status_cli import RouterSilentError, fetch_state, status_view
from tests.fakes.raw_server import answer
from tests.fakes.router_on_a_port import RouterOnAPort
from tests.fakes.serve_rest_api import FakeControlPlane

SPLIT = {"int8": 9000, "gptq": 1000}
ADMIN = "qtl-admin"


@pytest.fixture
async def plane():
    async with FakeControlPlane(SPLIT) as plane:
        yield plane


@pytest.fixture
async def router(plane, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_SERVE_API_URL", plane.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    sha = hashlib.sha256(ADMIN.encode()).hexdigest()
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"tenants": {"boss": {"admin": True, "keys": [{"sha256": sha}]}}}))
    admission = {"keys_file": str(keys), "anonymous": True}
    async with RouterOnAPort({"split": SPLIT, "admission": admission}) as router:
        yield router


async def test_requests_are_in_the_stream_a_second_later(router):
    streamed = answer(b"data: {}\n\n", b"x-variant: int8", b"content-type: text/event-stream")
    router.scripts["int8"] = [lambda peer: peer.say(streamed)]
    async with httpx.AsyncClient(base_url=router.url, timeout=10) as client:
        async with client.stream("GET", "/console/events") as stream:
            lines = (line async for line in stream.aiter_lines() if line)
            first = json.loads((await anext(lines)).removeprefix("data: "))
            assert {each["latency"] for each in first["variants"].values()} == {None}
            for _ in range(5):
                sent = await client.post("/v1/completions", json={"model": "m@int8"})
                assert sent.status_code == 200
            async with asyncio.timeout(10):
                async for line in lines:
                    latency = json.loads(line.removeprefix("data: "))["variants"]["int8"]["latency"]
                    if latency and latency["n"] == 5:
                        break
        assert latency["ttft_s"]["p50"] > 0


async def test_a_change_reaches_serves_api_and_leaves_the_rest_as_it_is(router, plane):
    wanted = {"model": "m", "expected": SPLIT, "split": {"int8": 5000, "gptq": 5000}}
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(base_url=router.url, timeout=10) as client:
        nobody = await client.post("/console/split", json=wanted)
        done = await client.post("/console/split", json=wanted, headers=headers)
        again = await client.post("/console/split", json=wanted, headers=headers)
    assert nobody.status_code == 401
    assert (done.status_code, done.json()["split"]) == (200, wanted["split"])
    assert plane.put_splits == [wanted["split"]]
    assert plane.config["applications"][1]["runtime_env"]["env_vars"] == {"HF_TOKEN": "secret"}
    assert (again.status_code, again.json()["error"]["code"]) == (409, "split_changed")


async def test_the_terminal_shows_the_same(router):
    state = await fetch_state(router.url, None)
    assert list(state["variants"]) == list(SPLIT)
    status_view(state)
    with pytest.raises(ConfigError, match="QUANTILE_API_KEY"):
        await fetch_state(router.url, "qtl-wrong")
    with pytest.raises(RouterSilentError, match="does not answer"):
        await fetch_state("http://127.0.0.1:9", None)
    with pytest.raises(ConfigError, match="no address"):
        await fetch_state("nonsense", None)
