"""Names of vLLM's own metrics: those that dashboards, load tests and we read, of real engines.

A release that renames one leaves a panel empty, or a figure missing, and nothing else says so.
"""

import asyncio
import time
from collections import defaultdict

import httpx
import pytest

from loadtests.campaign import Metrics
from loadtests.observe.pages import page_urls, read_page, samples_of
from serve_app.engines import vllm_engine
from serve_app.telemetry import names
from tests.engine_cpu.conftest import MODEL
from tests.fakes.prometheus import VLLMS
from tests.fakes.serve_client import CHAT, chat, metrics_file

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
VARIANTS = ("bf16", "int8", "gptq", "awq")
PREFIX = "ray_vllm_"
WITHIN_S = 60.0
"""Copied every five seconds, reported to Ray's agent every ten."""
GROW = {
    "ray_vllm_generation_tokens_total",
    "ray_vllm_prompt_tokens_total",
    "ray_vllm_prefix_cache_queries_total",
    "ray_vllm_inter_token_latency_seconds_bucket",
    "ray_vllm_request_queue_time_seconds_bucket",
}
"""What a few streamed answers are counted in, at the least."""


def wanted() -> set[str]:
    """As on Ray's pages: of dashboards and alerts, a campaign's default series, our own reads."""
    campaigns = Metrics(urls=("http://unused",)).series
    ours = (vllm_engine.RUNNING, vllm_engine.WAITING, vllm_engine.KV_USE)
    own = {each for each in (*campaigns, *ours) if each.startswith("vllm:")}
    return VLLMS | {each.replace("vllm:", PREFIX) for each in own}


def seen(pid: int) -> dict[str, dict[str, float]]:
    """Sum of each vLLM series, by name and variant, on all of Ray's pages now."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    own = [f"{PREFIX}*", *names.exported_names(names.ENGINE_KV_USE)]
    for url in page_urls(Metrics(file_sd=metrics_file(pid))):
        for sample in samples_of(read_page(url, 10), own, 0):
            found[sample.name][sample.labels.get("variant", "")] += sample.value
    return found


async def streamed(base_url: str) -> None:
    """Two answers of each variant: the second finds the first's prompt in the cache."""
    async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
        for name in VARIANTS:
            for _ in range(2):
                body = chat(f"{MODEL}@{name}", 16, stream=True, ignore_eos=True)
                assert (await client.post(CHAT, json=body)).status_code == 200


def test_every_name_that_is_asked_for_is_one_of_vllms(serve):
    asyncio.run(streamed(serve.base_url))
    deadline_s = time.monotonic() + WITHIN_S
    missing, idle = wanted(), GROW
    while missing or idle:
        found = seen(serve.pid)
        missing = {each for each in wanted() if found[each].keys() != set(VARIANTS)}
        idle = {each for each in GROW if not all(found[each][name] > 0 for name in VARIANTS)}
        if time.monotonic() > deadline_s:
            have = sorted(name for name in found if name.startswith(PREFIX))
            pytest.fail(f"not on the page: {missing}; never counted: {idle}; there are {have}")
        time.sleep(2)
    (kv_use,) = names.exported_names(names.ENGINE_KV_USE)
    assert seen(serve.pid)[kv_use].keys() == set(VARIANTS)
