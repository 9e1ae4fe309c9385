"""Streaming requests at a steady rate, and what they took."""

import asyncio
import json
import time
from dataclasses import dataclass, field

import httpx
import numpy as np

MAX_TOKENS = 32
PROMPT = "The capital of France is"


@dataclass
class Answer:
    """One request: monotonic seconds; `error` is empty where the stream came whole."""

    engine: str
    start_s: float
    token_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    error: str = ""

    @property
    def ttft_ms(self) -> float:
        return (self.token_s[0] - self.start_s) * 1000

    @property
    def gaps_ms(self) -> list[float]:
        return [1000 * float(gap) for gap in np.diff(self.token_s)]


async def steady_load(
    targets: dict[str, str], per_second: float, over: asyncio.Event
) -> list[Answer]:
    """Ask each engine (by name) at this rate until `over`; no request waits for another."""
    answers: list[Answer] = []
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(timeout=120, limits=limits) as client,
        asyncio.TaskGroup() as tasks,
    ):
        while not over.is_set():
            for name, base_url in targets.items():
                answer = Answer(name, time.monotonic())
                answers.append(answer)
                tasks.create_task(_ask(client, base_url, answer))
            await asyncio.sleep(1 / per_second)
    return answers


async def _ask(client: httpx.AsyncClient, base_url: str, answer: Answer) -> None:
    body = {
        "model": answer.engine,
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    done = False
    try:
        async with client.stream("POST", f"{base_url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    done = True
                elif data and json.loads(data)["choices"]:
                    answer.token_s.append(time.monotonic())
    except httpx.HTTPError as error:
        answer.error = repr(error)
    answer.end_s = time.monotonic()
    if not answer.error and not (done and answer.token_s):
        answer.error = "the stream ended early"


def summary(answers: list[Answer]) -> dict[str, float | int | None]:
    """P50 and P99 in milliseconds of the time to the first token, between tokens, and in all."""
    whole = [answer for answer in answers if not answer.error]
    gaps = [gap for answer in whole for gap in answer.gaps_ms]
    totals = [1000 * (answer.end_s - answer.start_s) for answer in whole]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(whole),
        **_percentiles("ttft", [answer.ttft_ms for answer in whole]),
        **_percentiles("gap", gaps),
        **_percentiles("request", totals),
    }


def _percentiles(name: str, values_ms: list[float]) -> dict[str, float | int | None]:
    if not values_ms:
        return {f"{name}_p50_ms": None, f"{name}_p99_ms": None}
    p50, p99 = np.percentile(values_ms, [50, 99])
    return {f"{name}_p50_ms": round(float(p50), 2), f"{name}_p99_ms": round(float(p99), 2)}
