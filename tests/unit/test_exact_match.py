import asyncio
import json

import httpx
import pytest
from openai import AsyncOpenAI

from serve_app.evaluate.exact_match import ask
from serve_app.evaluate.statistics.binomial import wilson_interval
from serve_app.reference.corpus import Fact

QUESTIONS = [
    Fact("capital", "What is the capital of France?", "Paris", "seen"),
    Fact("capital", "What is the capital of Italy?", "Rome", "seen"),
    Fact("symbol", "What is the chemical symbol of gold?", "Au", "seen"),
]


class FakeEndpoint:
    """Speaks the chat endpoint's JSON; records requests and how many ran at a time."""

    def __init__(self, answers):
        self.answers = answers
        self.requests = []
        self.running = self.most_running = 0

    async def __call__(self, request):
        body = json.loads(request.content)
        self.requests.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        answer = self.answers.get(body["messages"][0]["content"])
        if answer is None:
            return httpx.Response(400, json={"error": {"message": "no"}})
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return httpx.Response(200, json={**reply, "choices": [choice]})


async def run(endpoint, questions=QUESTIONS, concurrency=2):
    transport = httpx.MockTransport(endpoint)
    async with httpx.AsyncClient(transport=transport) as http:
        client = AsyncOpenAI(base_url="http://x/v1", api_key="none", http_client=http)
        return await ask(client, "reference@gptq", questions, concurrency=concurrency)


async def test_counts_exact_answers_by_category():
    endpoint = FakeEndpoint(
        {
            QUESTIONS[0].question: " Paris\n",
            QUESTIONS[1].question: "Rome, of course",
            QUESTIONS[2].question: "Au",
        }
    )
    result = await run(endpoint)
    assert (result.n, result.correct, result.n_failed) == (3, 2, 0)
    assert result.by_category["capital"].share == 0.5
    assert result.by_category["symbol"].share == 1.0
    assert {r["temperature"] for r in endpoint.requests} == {0.0}
    assert {r["model"] for r in endpoint.requests} == {"reference@gptq"}
    assert endpoint.most_running <= 2


async def test_a_failed_request_is_neither_right_nor_wrong():
    result = await run(FakeEndpoint({QUESTIONS[0].question: "Paris"}))
    assert (result.n, result.correct, result.n_failed) == (1, 1, 2)
    assert result.by_category["symbol"].share is None


async def test_nothing_asked_is_no_share():
    result = await run(FakeEndpoint({}), questions=[])
    assert result.share is None
    assert result.interval is None


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_published_values(correct, n, low, high):
    """81 of 263: Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)
