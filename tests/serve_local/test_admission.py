"""Admission inside real Serve replicas: keys, slow bodies, clients that leave while they wait."""

import asyncio
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from tests.fakes.admission import key_of, write_tenants
from tests.fakes.serve_client import CHAT, chat
from tests.serve_local.conftest import MODEL, serve_config, write_config

pytestmark = pytest.mark.serve

N_WAITING = 8


@pytest.fixture
async def client(serve, deploy, tmp_path):
    """Admission by keys; `deploy` takes it back. Two router replicas: limits count twice."""
    keys = write_tenants(tmp_path / "keys", acme={}, small={"concurrent_requests": 1})
    config = serve_config()
    config["applications"][0]["deployments"][0]["user_config"]["admission"] = {
        "keys_file": str(keys),
        "max_wait_s": 20,
        "body": {"piece_timeout_s": 0.5, "timeout_s": 2},
    }
    serve.deploy(write_config(tmp_path / "with-keys.yaml", config))
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=30) as client:
        deadline_s = time.monotonic() + 20
        refused = 0
        while refused < 10:  # in a row: both replicas have it
            status = (await client.post(CHAT, json=chat(MODEL))).status_code
            refused = refused + 1 if status == 401 else 0
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)
        yield client


def by(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(name)}"}


async def test_a_key_opens_the_router(client):
    answer = await client.post(CHAT, json=chat(MODEL), headers=by("acme"))
    assert answer.status_code == 200
    refused = await client.post(CHAT, json=chat(MODEL), headers={"authorization": "Bearer x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert (await client.get("/readyz")).status_code == 200


async def test_a_body_that_stops_is_a_408(client, serve):
    url = urlsplit(serve.base_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: {by('acme')['authorization']}"]
    writer.write("\r\n".join([*head, "content-length: 100", "", "{"]).encode())
    began_s = time.monotonic()
    status = await asyncio.wait_for(reader.readline(), 10)
    assert b"408" in status
    assert time.monotonic() - began_s < 5
    writer.close()


async def test_who_leaves_while_waiting_frees_its_place(client):
    slow = chat(f"{MODEL}@slow", max_tokens=400)
    served = [
        asyncio.ensure_future(client.post(CHAT, json=slow, headers=by("small")))
        for _ in range(2 + N_WAITING)
    ]
    await asyncio.sleep(1.0)  # two are served for twenty seconds, one by each replica
    for task in served:
        task.cancel()
    for task in served:
        with suppress(asyncio.CancelledError):
            await task
    began_s = time.monotonic()
    for _ in range(10):
        answer = await client.post(CHAT, json=chat(MODEL), headers=by("small"))
        assert answer.status_code == 200
    assert time.monotonic() - began_s < 10
