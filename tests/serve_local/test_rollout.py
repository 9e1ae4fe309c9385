"""A rollout of a real instance: Serve's own REST API, real routers, probes over its ingress."""

import asyncio
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from serve_app.config.parse import parse
from serve_app.config.rollout import RolloutConfig
from serve_app.rollouts.command import run_rollout, store_of
from tests.fakes.serve_client import replica_pids, wait_until
from tests.serve_local.conftest import MODEL, SHARES

pytestmark = pytest.mark.serve


def config_of(serve, candidate: str, **changes) -> RolloutConfig:
    values = {
        "model": MODEL,
        "baseline": "a",
        "candidate": candidate,
        "steps": [
            {"share_bp": 0, "advance_on": "no_breach", "min_requests": 20},
            {"share_bp": 5000},
        ],
        "each_step": {"min_requests": 20, "min_duration_s": 0, "max_duration_s": 60},
        "settle_s": 0.5,
        "evidence": [
            {
                "kind": "probes",
                "base_url": f"{serve.base_url}/v1",
                "rate_per_s": 40,
                "max_tokens": 4,
                "look_s": 0.5,
            }
        ],
        "guards": {"errors": {"margin": 0.2}, "ttft": {"mean": {"tolerated": 0.5, "margin": 2}}},
        "target": {"kind": "serve", "url": serve.dashboard_url},
    }
    return parse(RolloutConfig, values | changes, where="test")


def shares_served(serve) -> dict[str, int]:
    status = httpx.get(f"{serve.base_url}/status", timeout=10).json()
    return {name: each["share_bp"] for name, each in status["variants"].items()}


def router_and_baseline(serve_pid: int) -> set[int]:
    titles = "router:VariantRouter", "a:VariantServer"
    return {pid for title in titles for pid in replica_pids(title, serve_pid)}


def test_a_good_candidate_gets_the_baselines_traffic_without_a_restart(serve, deploy, tmp_path):
    replicas = replica_pids("router:VariantRouter", serve.pid) | replica_pids(
        "a:VariantServer", serve.pid
    )
    status = run_rollout(config_of(serve, "b"), tmp_path, Console(quiet=True))
    assert status == 0
    moved = {"a": 0, "b": SHARES["a"] + SHARES["b"], "c": SHARES["c"]}
    wait_until(
        lambda: {k: v for k, v in shares_served(serve).items() if k in moved} == moved,
        20,
        "the router follows",
    )
    assert (
        replica_pids("router:VariantRouter", serve.pid) | replica_pids("a:VariantServer", serve.pid)
        == replicas
    )
    deploy()


def test_a_candidate_that_fails_its_probes_meets_no_client(serve, deploy, tmp_path: Path):
    deploy()
    status = run_rollout(config_of(serve, "busy"), tmp_path, Console(quiet=True))
    assert status == 1
    store = store_of(config_of(serve, "busy"))

    async def split() -> dict[str, int]:
        try:
            return await store.read()
        finally:
            await store.close()

    found = asyncio.run(split())
    assert {name: share for name, share in found.items() if share} == SHARES
