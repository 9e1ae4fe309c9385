"""A router replica that Serve stops: its streams end in an error event before Serve cuts them."""

import asyncio
import time

import openai
import pytest

from tests.fakes.serve_client import chat
from tests.serve_local.conftest import MODEL

pytestmark = pytest.mark.serve

N_STREAMS = 8
DRAIN_S = 2.0


async def test_its_streams_end_in_an_error_event_and_those_of_others_go_on(serve, deploy):
    await asyncio.to_thread(deploy, resilience={"drain_s": DRAIN_S})
    await asyncio.sleep(3)  # until both replicas know
    client = openai.AsyncOpenAI(base_url=f"{serve.base_url}/v1", api_key="none", max_retries=0)
    begun = [asyncio.Event() for _ in range(N_STREAMS)]

    async def read(started: asyncio.Event) -> str:
        """The code of the error that ended the stream; each would take 20 s."""
        try:
            request = chat(f"{MODEL}@slow", max_tokens=400)
            async for _ in await client.chat.completions.create(**request, stream=True):
                started.set()
        except openai.APIError as error:
            return str(error.code)
        return "whole"

    streams = [asyncio.create_task(read(each)) for each in begun]
    await asyncio.gather(*(each.wait() for each in begun))
    stopped_s = time.monotonic()
    await asyncio.to_thread(deploy, routers=1, resilience={"drain_s": DRAIN_S})
    ended, others = await asyncio.wait(streams, timeout=15, return_when=asyncio.FIRST_COMPLETED)
    assert ended, "Serve cut nothing and the router ended nothing"
    assert time.monotonic() - stopped_s > DRAIN_S
    await asyncio.sleep(1)
    codes = [each.result() for each in streams if each.done()]
    assert set(codes) == {"router_stopping"} and len(codes) < N_STREAMS
    for each in others:
        each.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
