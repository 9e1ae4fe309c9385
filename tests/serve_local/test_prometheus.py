"""A real Prometheus with the shipped configuration beside a running instance.

Ray's workers report every ten seconds: what is asked of rates waits for three reports.
"""

import asyncio
import json

import httpx
import pytest

from tests.fakes.admission import write_tenants
from tests.fakes.prometheus import DASHBOARDS, Prometheus, filled_in, need, queries
from tests.fakes.serve_client import CHAT, chat, metrics_file
from tests.serve_local.conftest import MODEL, serve_config, write_config

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]
RATE_WINDOW = "45s"
ROLLOUT = "quantile_rollout_"
SILENT_HERE = {
    "ray_quantile_engine_memory_": "fake engines take no memory, and have no plan",
    "ray_quantile_engine_device_bytes": "the same",
    "ray_quantile_engine_gpu_fraction": "there is no GPU",
    "ray_vllm_prompt_tokens_total": "of vLLM; a fake engine has three of its series",
    "ray_vllm_prefix_cache_": "the same",
    "ray_vllm_num_preemptions_total": "the same",
    "ray_vllm_inter_token_latency_": "the same",
    "ray_vllm_request_queue_time_": "the same",
    ROLLOUT: "no rollout runs; tests/contract asks the same queries",
    "quantile:slo_": "its windows are minutes; tests/contract and promtool ask them",
    "ALERTS": "nothing need fire",
    "ray_quantile_engine_kv_use_ratio": "a fake engine without `max_num_seqs` has no cache",
    "ray_quantile_router_retries_total": "no replica is lost before its first byte",
    "ray_quantile_router_deadlines_exceeded_total": "a cause for each would be slow",
    "ray_quantile_router_breaker_changes_total": "the same",
    "ray_quantile_ladder_moves_total": "the same",
    "haproxy_backend_connection_errors_total": "its rate is of what may be no more",
    'status=~"5.."': "only where a variant's own answer is a 5xx that nobody stands in for",
}
"""By what stands in the query: why it may have no answer here."""


@pytest.fixture
def settings(tmp_path):
    """Everything on that has series: keys, places, a ladder, shadow traffic."""
    config = serve_config(fallback=("a", "b", "c"))
    router = config["applications"][0]["deployments"][0]["user_config"]
    keys = write_tenants(tmp_path / "keys", acme={})
    router["admission"] = {"keys_file": str(keys), "anonymous": True, "max_in_flight": 2}
    router["shadow"] = {"variant": "c", "share_bp": 10000}
    router["ladder"] = {"rungs": ["a", "b"], "max_in_flight": {"a": 4}}
    return write_config(tmp_path / "all.yaml", config)


async def traffic(base_url: str, until: asyncio.Event) -> None:
    """Greedy and pinned requests, more at once than have places, and streams, which alone have a
    TTFT and, with their usage, a TPOT; some variants fail, and one caller has a wrong key."""
    usage = {"include_usage": True}
    bodies = [chat(name, 4, temperature=0) for name in (MODEL, MODEL, f"{MODEL}@b")]
    bodies += [
        chat(f"{MODEL}@{name}", 8, stream=True, stream_options=usage)
        for name in ("a", "dying", "busy")
    ]

    async def one(client: httpx.AsyncClient, body: dict, **headers: str) -> None:
        try:
            await client.post(CHAT, json=body, headers=headers)
        except httpx.HTTPError:
            return  # `dying` breaks its answers off

    async with httpx.AsyncClient(base_url=base_url, timeout=20) as client:
        while not until.is_set():
            await asyncio.gather(*(one(client, body) for body in bodies for _ in range(2)))
            await one(client, bodies[0], authorization="Bearer wrong")
            await asyncio.sleep(0.2)


async def test_every_panel_has_an_answer(serve, deploy, settings, tmp_path):
    need("prometheus")
    serve.deploy(settings)
    ended = asyncio.Event()
    asking = asyncio.create_task(traffic(serve.base_url, ended))
    try:
        with Prometheus(tmp_path, file_sd=metrics_file(serve.pid)) as prometheus:
            await asyncio.to_thread(_every_panel, prometheus)
    finally:
        ended.set()
        await asking


def _every_panel(prometheus: Prometheus) -> None:
    wanted = [
        (path.stem, title, expr)
        for path in DASHBOARDS
        for title, expr in queries(json.loads(path.read_text("utf-8")))
    ]
    silent = list(wanted)

    def all_answer() -> bool:
        silent[:] = [each for each in silent if not _answer(prometheus, each[2])]
        return not [each for each in silent if not _may_be_silent(each[2])]

    try:
        prometheus.until(all_answer, 90)
    except pytest.fail.Exception:
        pytest.fail(f"no answer: {[each for each in silent if not _may_be_silent(each[2])]}")
    answered = len(wanted) - len(silent)
    print(f"{answered} of {len(wanted)} queries answered; targets {prometheus.targets()}")
    assert answered > len(wanted) / 2
    assert prometheus.targets()["haproxy"] == ["up"]
    assert set(prometheus.targets()["ray"]) == {"up"}
    assert not prometheus.ask('ALERTS{alertname=~"QuantileNo.*"}')


def _answer(prometheus: Prometheus, expr: str) -> list:
    return prometheus.ask(filled_in(expr, baseline="a", __rate_interval=RATE_WINDOW))


def _may_be_silent(expr: str) -> bool:
    return any(part in expr for part in SILENT_HERE)
