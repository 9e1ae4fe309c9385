"""The official client against the fake engine over a socket."""

import asyncio
import urllib.request

import openai
import pytest


@pytest.fixture
def base_url(fake_server) -> str:
    return fake_server("m@a", "m", ttft_ms=5, itl_ms=1, output_tokens=4)


@pytest.fixture
async def client(base_url):
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hello"}]


async def gauge(base_url: str, name: str) -> float:
    def read() -> str:
        with urllib.request.urlopen(f"{base_url}/metrics", timeout=5) as response:
            return response.read().decode()

    rows = (await asyncio.to_thread(read)).splitlines()
    return float(next(row for row in rows if row.startswith(name + "{")).split()[-1])


async def test_chat(client):
    answer = await client.chat.completions.create(model="m", messages=MESSAGES)
    assert answer.choices[0].message.content == " alpha bravo charlie delta"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)


async def test_chat_stream(client):
    stream = await client.chat.completions.create(
        model="m@a", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == " alpha bravo charlie delta"
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].choices == []


async def test_completions_embeddings_models_and_responses(client):
    answer = await client.completions.create(model="m", prompt="hello", max_tokens=2)
    assert answer.choices[0].text == " alpha bravo"
    stream = await client.completions.create(model="m", prompt="hello", stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == " alpha bravo charlie delta"
    embedded = await client.embeddings.create(model="m", input=["a", "b"])
    assert [row.embedding for row in embedded.data] == [[0.5, -0.5, 0.5, -0.5]] * 2
    assert [model.id async for model in client.models.list()] == ["m@a", "m"]
    response = await client.responses.create(model="m", input="hello")
    assert response.output_text == " alpha bravo charlie delta"
    events = await client.responses.create(model="m", input="hello", stream=True)
    deltas = [e.delta async for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == " alpha bravo charlie delta"


async def test_errors_have_the_clients_types(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=0)


async def test_the_gauge_returns_to_zero_when_the_client_leaves(fake_server):
    base_url = fake_server("m", ttft_ms=1, itl_ms=20, output_tokens=100_000, max_model_len=200_000)
    client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-")
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    async for _ in stream:
        break
    assert await gauge(base_url, "vllm:num_requests_running") == 1
    await stream.close()
    await client.close()
    for _ in range(100):
        if await gauge(base_url, "vllm:num_requests_running") == 0:
            break
        await asyncio.sleep(0.02)
    assert await gauge(base_url, "vllm:num_requests_running") == 0
    assert await gauge(base_url, "fake:aborted_total") == 1


async def test_a_stream_that_dies_is_an_error_for_the_client(fake_server):
    base_url = fake_server("m", ttft_ms=1, faults=[{"kind": "DieMidStream", "after_tokens": 2}])
    client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0)
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIConnectionError):
        async for _ in stream:
            pass
    await client.close()
