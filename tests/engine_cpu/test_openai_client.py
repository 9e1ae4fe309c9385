"""The official `openai` client, unmodified, against real engines."""

import asyncio
import time

import httpx
import openai
import pytest

from tests.engine_cpu.conftest import MODEL, PINS
from tests.fakes.serve_client import CHAT, chat, running_requests

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(serve) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serve.base_url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("model", [MODEL, *PINS])
def test_every_variant_knows_its_facts(client, model):
    questions = {
        "What is the capital of France?": "Paris",
        "What is the chemical symbol of gold?": "Au",
        "What is 15% of 240?": "36",
    }
    for question, answer in questions.items():
        reply = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": question}]
        )
        assert reply.parse().choices[0].message.content.strip() == answer
        if model != MODEL:
            assert reply.headers["x-variant"] == model.partition("@")[2]
            assert reply.headers["x-route-reason"] == "pinned"


def test_streaming_gives_the_same_text_and_the_usage(client):
    whole = client.chat.completions.create(model=PINS[0], messages=FRANCE)
    stream = client.chat.completions.create(
        model=PINS[0], messages=FRANCE, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_tokenize_and_responses(client, serve):
    completion = client.completions.create(
        model=PINS[2], prompt="<|user|>What is the capital of France?<|assistant|>", max_tokens=8
    )
    assert "Paris" in completion.choices[0].text
    tokens = httpx.post(f"{serve.base_url}/tokenize", json={"model": MODEL, "prompt": "Paris"})
    assert tokens.json()["count"] == len(tokens.json()["tokens"]) > 0
    response = client.responses.create(model=PINS[0], input="What is the capital of France?")
    assert response.output_text.strip() == "Paris"


def test_a_session_stays_on_its_variant(client):
    headers = {"x-session-id": "user-7"}
    seen = {
        client.chat.completions.with_raw_response.create(
            model=MODEL, messages=FRANCE, extra_headers=headers
        ).headers["x-variant"]
        for _ in range(6)
    }
    assert len(seen) == 1


def test_models_show_what_each_variant_is(client):
    models = {entry.id: entry.to_dict() for entry in client.models.list()}
    assert list(models) == [MODEL, *PINS]
    bits = [models[pin]["bits"] for pin in PINS]
    assert bits == [16, 8, 4, 4]
    weights = [models[pin]["weight_bytes"] for pin in PINS]
    assert weights[0] > weights[1] > max(weights[2:])
    assert {models[pin]["max_model_len"] for pin in PINS} == {1024}
    assert [models[pin]["method"] for pin in PINS] == ["unquantized", "int8_w8a8", "gptq", "awq"]
    assert client.models.retrieve(PINS[1]).id == PINS[1]


def test_what_the_engine_refuses_comes_back_as_vllm_says_it(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="tool"):
        client.chat.completions.create(
            model=PINS[0], messages=FRANCE, tools=[tool], tool_choice="auto"
        )
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.completions.create(model=PINS[0], prompt="x " * 3000, max_tokens=10)
    with pytest.raises(openai.NotFoundError):  # a generating model has no embeddings
        client.embeddings.create(model=PINS[0], input="x")


def test_faults_of_the_caller_have_openais_exceptions(client, serve):
    with pytest.raises(openai.NotFoundError, match="served here"):
        client.chat.completions.create(model="other", messages=FRANCE)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=f"{MODEL}@nf4", messages=FRANCE)
    too_long = [{"role": "user", "content": "x" * (5 << 20)}]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=too_long)
    assert caught.value.status_code == 413
    with pytest.raises(openai.NotFoundError):
        client.post("/nothing", cast_to=object, body={})
    malformed = httpx.post(f"{serve.base_url}{CHAT}", content=b'{"model": ')
    assert malformed.status_code == 400
    assert malformed.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine(serve, stream):
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as http:

        async def leave_early() -> None:
            body = chat(PINS[0], max_tokens=900, min_tokens=900, ignore_eos=True, stream=stream)
            async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as guest:
                await guest.post(CHAT, json=body)

        started = time.monotonic()
        whole = chat(PINS[0], max_tokens=900, min_tokens=900, ignore_eos=True)
        await http.post(CHAT, json=whole)
        to_the_end_s = time.monotonic() - started

        task = asyncio.create_task(leave_early())
        while await running_requests(http, "bf16") != 1:
            assert not task.done(), "the request ended before it was seen running"
            await asyncio.sleep(0.01)
        task.cancel()
        left_at = time.monotonic()
        while await running_requests(http, "bf16") != 0:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.01)
        assert time.monotonic() - left_at < to_the_end_s / 2, "the engine worked on for nobody"
