"""What a client sees when variants are busy, gone or die, and when the client itself leaves."""

import asyncio
import time

import httpx
import openai
import pytest

from tests.fakes.serve_client import CHAT, chat, running_requests
from tests.serve_local.conftest import MODEL

pytestmark = pytest.mark.serve


async def until_variant_answers(client, session: str, reason: str) -> httpx.Response:
    """Ask until the answer comes for the awaited reason (a deploy takes effect within seconds)."""
    deadline = time.monotonic() + 15
    while True:
        answer = await client.post(CHAT, json=chat(MODEL), headers={"x-session-id": session})
        if answer.headers["x-route-reason"] == reason or time.monotonic() > deadline:
            return answer
        await asyncio.sleep(0.3)


@pytest.mark.parametrize("unable", ["busy", "ghost"])
async def test_the_next_in_the_order_stands_in(serve, deploy, unable):
    """`busy` answers 503; `ghost` has no application at all."""
    deploy(shares={unable: 10_000, "a": 0, "b": 0}, fallback=("b", "a"))
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=30) as client:
        answer = await until_variant_answers(client, "s", "fallback")
        assert answer.status_code == 200
        assert answer.headers["x-variant"] == "b"
        assert answer.headers["x-route-reason"] == "fallback"

        pinned = await client.post(CHAT, json=chat(f"{MODEL}@{unable}"))
        assert pinned.status_code == 503
        assert int(pinned.headers["retry-after"]) >= 1
        assert pinned.headers["x-route-reason"] == "rejected"
        assert pinned.json()["error"]["code"] == "variant_unavailable"

        ready = await client.get("/readyz")
        # a busy variant still shows its card; one that is not there is not ready
        assert ready.status_code == (503 if unable == "ghost" else 200)


async def test_no_variant_and_no_stand_in_is_503(serve, deploy):
    deploy(shares={"busy": 10_000, "a": 0}, fallback=())
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=30) as client:
        deadline = time.monotonic() + 15
        while (answer := await client.post(CHAT, json=chat(MODEL))).status_code == 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.3)
    assert answer.status_code == 503
    assert "busy" in answer.json()["error"]["message"]


async def test_a_stream_that_dies_ends_in_an_error_event(serve):
    client = openai.AsyncOpenAI(base_url=f"{serve.base_url}/v1", api_key="none", max_retries=0)
    words = []

    async def read_to_the_end() -> None:
        async for event in await client.chat.completions.create(
            **chat(f"{MODEL}@dying"), stream=True
        ):
            words.append(event.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="broke off"):
        await read_to_the_end()
    assert len([word for word in words if word]) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engines_work(serve, stream):
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as client:

        async def leave_early() -> None:
            async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as guest:
                body = chat(f"{MODEL}@slow", max_tokens=400, stream=stream)
                await guest.post(CHAT, json=body)

        task = asyncio.create_task(leave_early())
        deadline = time.monotonic() + 10
        while await running_requests(client, "slow") != 1:
            assert time.monotonic() < deadline, "the request never reached the engine"
            await asyncio.sleep(0.05)
        task.cancel()
        left_at = time.monotonic()
        while await running_requests(client, "slow") != 0:
            assert time.monotonic() - left_at < 3, "the engine works on for nobody"
            await asyncio.sleep(0.05)


async def test_faults_of_the_caller(serve):
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=30) as client:
        cases = [
            (await client.post(CHAT, content=b"{no json"), 400, "invalid_request"),
            (await client.post(CHAT, json={"messages": []}), 400, "invalid_request"),
            (await client.post(CHAT, json=chat("other")), 404, "model_not_found"),
            (await client.post(CHAT, json=chat(f"{MODEL}@none")), 404, "model_not_found"),
            (await client.post("/v1/nothing", json={}), 404, "path_not_found"),
            (await client.get(CHAT), 405, "method_not_allowed"),
            (await client.post(CHAT, content=b"x" * (5 << 20)), 413, "body_too_large"),
        ]
    for answer, status, code in cases:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code
        assert answer.headers["x-variant"] == "none"
        assert answer.headers["x-route-reason"] == "rejected"
        assert answer.headers["x-request-id"]


async def test_a_variant_is_closed_to_those_without_the_token(serve):
    async with httpx.AsyncClient(base_url=serve.base_url) as client:
        for path in ("/variants/a/v1/models", "/variants/a/metrics", "/variants/a/quantile/card"):
            assert (await client.get(path)).status_code == 404
            forged = {"x-quantile-internal": "wrong"}
            assert (await client.get(path, headers=forged)).status_code == 404
