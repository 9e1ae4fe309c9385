"""The console inside real Serve replicas: its stream through the ingress, and the split."""

import asyncio
import json
import time

import httpx
import pytest

from tests.fakes.admission import key_of, write_tenants
from tests.fakes.serve_client import CHAT, chat
from tests.serve_local.conftest import MODEL, SHARES, serve_config, write_config

pytestmark = pytest.mark.serve


def by(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(name)}"}


async def test_an_admins_split_is_served_and_seen_by_who_watches(serve, deploy, tmp_path):
    """The replica finds Serve's REST API by itself; its change is a `serve deploy` like any."""
    keys = write_tenants(tmp_path / "keys", boss={"admin": True}, guest={})
    config = serve_config()
    config["applications"][0]["deployments"][0]["user_config"]["admission"] = {
        "keys_file": str(keys)
    }
    serve.deploy(write_config(tmp_path / "with-keys.yaml", config))
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=30) as client:
        end_s = time.monotonic() + 20
        told = 0
        while told < 10:  # in a row: both replicas have the keys
            status = (await client.get("/console/who", headers=by("guest"))).status_code
            nobody = (await client.get("/console/who")).status_code
            told = told + 1 if (status, nobody) == (200, 401) else 0
            assert time.monotonic() < end_s
            await asyncio.sleep(0.05)
        state = (await client.get("/console/state", headers=by("guest"))).json()
        before = state["aliases"][MODEL]["split"]
        assert state["variants"]["a"]["replicas"] == {"running": 1, "target": 1}
        after = before | {"a": before["a"] - 1000, "b": before["b"] + 1000}
        wanted = {"model": MODEL, "expected": before, "split": after}
        async with client.stream("GET", "/console/events", headers=by("guest")) as stream:
            lines = (line async for line in stream.aiter_lines() if line)
            assert _split(await anext(lines)) == before
            refused = await client.post("/console/split", json=wanted, headers=by("guest"))
            assert refused.status_code == 403
            done = await client.post("/console/split", json=wanted, headers=by("boss"))
            assert done.status_code == 200, done.text
            async with asyncio.timeout(20):
                while _split(await anext(lines)) != after:
                    pass
        assert {name: after[name] for name in SHARES} == {"a": 4000, "b": 4000, "c": 2000}
        answer = await client.post(CHAT, json=chat(MODEL), headers=by("guest"))
        assert answer.status_code == 200


def _split(line: str) -> dict[str, int]:
    return json.loads(line.removeprefix("data: "))["aliases"][MODEL]["split"]
