"""What a running instance tells of itself: `/status`, and its series on Ray's metrics pages."""

import asyncio

import httpx
import pytest

from loadtests.campaign import Campaign, Metrics, parse_campaign
from loadtests.observe.pages import page_urls, read_page, samples_of
from loadtests.observe.ready import tokens_per_word, wait_until_ready
from serve_app.telemetry import names
from tests.fakes.serve_client import CHAT, chat, metrics_file
from tests.serve_local.conftest import MODEL, SCRIPTS

pytestmark = pytest.mark.serve
SAMPLED = ("ray_quantile_engine_*", "ray_serve_replica_processing_queries")


def campaign_for(serve) -> Campaign:
    return parse_campaign(
        {
            "target": {"base_url": serve.base_url, "model": MODEL, "variants": list(SCRIPTS)},
            "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
            "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1.0, "duration_s": 1.0}],
        },
        "test",
    )


def test_a_load_test_learns_replicas_and_facts_of_every_variant(serve):
    campaign = campaign_for(serve)
    found = wait_until_ready(campaign, print)
    assert {name: facts.replicas for name, facts in found.items()} == dict.fromkeys(SCRIPTS, 1)
    for name, script in SCRIPTS.items():
        facts = found[name].facts
        assert facts["engine"] == "fake"
        if "itl_ms" in script:
            assert float(facts["itl_ms"]) == script["itl_ms"]
    assert tokens_per_word(campaign, "one two") == 3.5  # the fake engine's tokens are bytes


async def test_the_status_counts_every_replica_as_it_comes(serve, deploy):
    """Two routers follow one split: either may be asked."""
    deploy(replicas={"c": 2})
    seen = []
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=10) as client:
        for _ in range(120):
            status = (await client.get("/status")).json()["variants"]["c"]["replicas"]
            seen.append((status["running"], status["target"]))
            if seen[-1] == (2, 2):
                break
            await asyncio.sleep(0.5)
    assert seen[-1] == (2, 2), seen
    assert all(target in (1, 2, None) for _, target in seen)


async def test_how_busy_each_variant_is_appears_on_rays_metrics_pages(serve):
    """Ray takes samples over every ten seconds; the request lasts twenty."""
    metrics = Metrics(file_sd=metrics_file(serve.pid), series=SAMPLED)
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as client:
        asked = asyncio.create_task(client.post(CHAT, json=chat(f"{MODEL}@slow", 400)))
        running: dict[str, float] = {}
        while not asked.done():
            pages = [await asyncio.to_thread(read_page, url, 5.0) for url in page_urls(metrics)]
            samples = [each for page in pages for each in samples_of(page, SAMPLED, 0)]
            running = {
                each.labels["variant"]: each.value
                for each in samples
                if each.name == f"ray_{names.ENGINE_RUNNING.name}"
            }
            if running.get("slow"):
                break
            await asyncio.sleep(0.5)
        assert running.keys() >= set(SCRIPTS)
        assert (running["slow"], running["a"]) == (1.0, 0.0)
        assert any(each.name == "ray_serve_replica_processing_queries" for each in samples)
        asked.cancel()
