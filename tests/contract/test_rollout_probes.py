"""Probes over real connections: what they time, what they compare, and what they blame on whom."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from aiohttp import web

from serve_app.config.parse import parse
from serve_app.config.rollout_evidence import ProbesConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollout.observations import Look
from serve_app.rollouts.evidence import Clock, together
from serve_app.rollouts.evidence_probes import ProbeEvidence


class Endpoint:
    """An OpenAI endpoint that streams words; by variant how it does."""

    def __init__(self) -> None:
        self.words = {"int8": ["It", " is", " Paris."], "gptq": ["It", " is", " Paris."]}
        self.ttft_s = {"int8": 0.02, "gptq": 0.02}
        self.gap_s = 0.01
        self.status = {"int8": 200, "gptq": 200}
        self.ends_early: set[str] = set()
        self.breaks: set[str] = set()
        self.keys: set[str] = set()
        self.asked: list[str] = []
        self.in_flight = Counter[str]()
        self.change: Callable[[str], list[str]] = lambda variant: self.words[variant]

    async def __aenter__(self) -> "Endpoint":
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["stream"] and body["temperature"] == 0
        model, _, variant = body["model"].partition("@")
        assert model == "m"
        self.asked.append(variant)
        self.keys.add(request.headers.get("Authorization", ""))
        if self.status[variant] != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status[variant])
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await self._send(answer, {"choices": [{"delta": {"role": "assistant"}}]})
        await asyncio.sleep(self.ttft_s[variant])
        words = self.change(variant)
        for i, word in enumerate(words):
            if i:
                await asyncio.sleep(self.gap_s)
            await self._send(answer, {"choices": [{"delta": {"content": word}}]})
            if variant in self.breaks:
                await self._send(answer, {"error": {"message": "engine died"}})
                return answer
        if variant not in self.ends_early:
            usage = {"prompt_tokens": 3, "completion_tokens": len(words)}
            await self._send(answer, {"choices": [], "usage": usage})
            await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _send(self, answer: web.StreamResponse, chunk: dict) -> None:
        # in two pieces: an event need not come whole
        data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        await answer.write(data[:9])
        await answer.write(data[9:])


@pytest.fixture
async def endpoint():
    async with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
async def probes(endpoint, tmp_path):
    """`await probes(n)`: the evidence after at least n pairs."""
    prompts = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": "What is the capital of France?"}
    prompts.write_text(json.dumps({"messages": [message], "expect": "paris"}) + "\n")
    made: list[ProbeEvidence] = []

    async def collect(n: int, environ: dict[str, str] | None = None, **changes) -> Look:
        values = {
            "kind": "probes",
            "base_url": endpoint.base_url,
            "prompts": prompts,
            "rate_per_s": 200,
            "floor": True,
        }
        config = parse(ProbesConfig, values | changes, where="test")
        clock = Clock(time.monotonic, asyncio.sleep)
        probes = ProbeEvidence(config, "m", "int8", "gptq", clock, 3, environ or {})
        made.append(probes)
        await probes.begin()
        looks: list[Look] = []
        async with asyncio.timeout(20):
            while sum(len(look.pairs) for look in looks) < n:
                await asyncio.sleep(0.05)
                looks.append(await probes.take())
        return together(looks)

    collect.made = made
    yield collect
    for each in made:
        await each.close()


async def test_both_variants_are_asked_the_same_in_an_order_that_is_drawn(probes, endpoint):
    look = await probes(20)
    assert look.pairs.ok.all()
    counts = Counter(endpoint.asked)
    assert counts["int8"] == pytest.approx(2 * counts["gptq"], abs=12)  # floor: asked twice
    firsts = {tuple(endpoint.asked[i : i + 2]) for i in range(20)}
    assert ("gptq", "int8") in firsts and ("int8", "gptq") in firsts
    assert (look.pairs.disagrees == 0).all() and (look.pairs.wrong == 0).all()


async def test_latencies_are_those_of_the_stream(probes, endpoint):
    endpoint.ttft_s["gptq"] = 0.12
    look = await probes(10, concurrency=1)
    ttft_s, tpot_s = look.pairs.latencies_s["ttft"], look.pairs.latencies_s["tpot"]
    assert ttft_s[:, 0].min() >= 0.02
    assert ttft_s[:, 1].min() >= 0.12
    assert np.median(ttft_s[:, 1]) < 0.4
    assert np.median(tpot_s) == pytest.approx(0.01, abs=0.02)
    assert tpot_s.min() > 0.005


async def test_answers_are_compared_in_normal_form_and_with_what_is_expected(probes, endpoint):
    endpoint.words["gptq"] = ["it", " is", " PARIS"]
    same = await probes(4)
    assert (same.pairs.disagrees == 0).all()
    endpoint.words["gptq"] = ["It", " is", " Parisian."]
    other = await probes(4)
    assert (other.pairs.disagrees[-2:] == 1).all()
    assert other.pairs.wrong[-1].tolist() == [0, 1]


async def test_a_baseline_that_differs_from_itself_is_the_floor(probes, endpoint):
    turns = Counter[str]()

    def change(variant: str) -> list[str]:
        turns[variant] += 1
        return ["Paris", f" {turns[variant]}"]

    endpoint.change = change
    look = await probes(5, concurrency=1)
    assert (look.pairs.floor_disagrees == 1).all()


@pytest.mark.parametrize("how", ["status", "ends_early", "breaks"])
async def test_an_answer_that_is_not_whole_is_a_failure_of_its_variant(probes, endpoint, how):
    if how == "status":
        endpoint.status["gptq"] = 500
    else:
        getattr(endpoint, how).add("gptq")
    look = await probes(5)
    assert look.pairs.ok[:, 0].all() and not look.pairs.ok[:, 1].any()
    assert np.isnan(look.pairs.latencies_s["ttft"][:, 1]).all()
    assert np.isnan(look.pairs.disagrees).all()


async def test_a_variant_that_does_not_answer_in_time_has_failed(probes, endpoint):
    endpoint.ttft_s["gptq"] = 5.0
    look = await probes(2, timeout_s=0.3)
    assert look.pairs.ok[:, 0].all() and not look.pairs.ok[:, 1].any()


async def test_too_many_requests_is_no_evidence_and_is_told(probes, endpoint):
    endpoint.status["gptq"] = 429
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await probes(1)
    assert "the last: 429" in probes.made[-1].trouble


async def test_nobody_listening_is_no_evidence_against_either(probes, endpoint):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await probes(1, base_url="http://127.0.0.1:9/v1")
    assert "cannot connect" in probes.made[-1].trouble


@pytest.mark.parametrize("status", [401, 404])
async def test_a_request_that_is_wrong_stops_the_rollout(probes, endpoint, status):
    endpoint.status["gptq"] = status
    with pytest.raises(ConfigError, match=f"refuses the probes of gptq .{status}"):
        await probes(1)


async def test_the_api_key_comes_from_the_environment(probes, endpoint):
    await probes(1, {"PROBE_KEY": " secret "}, api_key_env="PROBE_KEY")
    assert endpoint.keys == {"Bearer secret"}
    with pytest.raises(ConfigError, match="PROBE_KEY, which is not set"):
        await probes(1, {}, api_key_env="PROBE_KEY")


async def test_slow_answers_bound_what_is_under_way(probes, endpoint):
    endpoint.ttft_s = {"int8": 0.3, "gptq": 0.3}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.9):
            await probes(1000, concurrency=3, floor=False)
    assert len(endpoint.asked) <= 12


async def test_what_was_under_way_at_a_new_step_is_dropped(probes, endpoint):
    await probes(3)
    evidence = probes.made[-1]
    await asyncio.sleep(0.1)
    await evidence.begin()
    assert len((await evidence.take()).pairs) == 0
