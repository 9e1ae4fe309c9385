"""The metrics of the shipped rollout file, asked of a real Prometheus as in the cluster.

Its pace here is a second; `namespace` is what a PodMonitor adds.
"""

import asyncio
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serve_app.config.rollout import read_rollout
from serve_app.config.rollout_evidence import MetricsConfig
from serve_app.rollouts.evidence import Clock
from serve_app.rollouts.evidence_metrics import MetricsEvidence
from tests.fakes.metrics_page import Traffic, metrics_page
from tests.fakes.prometheus import Prometheus, need

SHIPPED = Path(__file__).parents[2] / "configs" / "rollouts" / "canary-live-metrics.yaml"


def shipped_at(url: str) -> MetricsConfig:
    """The shipped source, of that Prometheus, with a window of seconds."""
    [source] = [each for each in read_rollout(SHIPPED).evidence if isinstance(each, MetricsConfig)]
    [asked] = map(urlsplit, source.urls)
    urls = (f"{url}{asked.path}?{asked.query}",)
    return source.model_copy(update={"urls": urls, "window_s": 4.0, "min_window_requests": 4})


@pytest.mark.parametrize(("namespace", "is_ours"), [("quantile", True), ("another", False)])
async def test_windows_of_both_arms_come_from_prometheus(tmp_path, namespace, is_ours):
    """Two variants, of each and each status a request a second, one fallback, one broken stream."""
    need("prometheus")
    with metrics_page(Traffic()) as page:
        file_sd = tmp_path / "targets.json"
        labels = {"job": "ray", "namespace": namespace}
        file_sd.write_text(json.dumps([{"labels": labels, "targets": [page]}]))
        with Prometheus(tmp_path, file_sd=file_sd, static={}) as prometheus:
            seen = "ray_quantile_router_requests_total"
            await asyncio.to_thread(prometheus.until, lambda: prometheus.ask(seen), 30)
            clock = Clock(time.monotonic, asyncio.sleep)
            evidence = MetricsEvidence(shipped_at(prometheus.url), "bf16", "awq", clock)
            await evidence.begin()
            await asyncio.sleep(5)
            look = await evidence.take()
            if not is_ours:
                assert not look.windows
                assert "no requests of bf16, awq yet" in (evidence.trouble or "")
                return
            (window,) = look.windows
            for arm in (window.baseline, window.candidate):
                assert 4 * 3 <= arm.requests <= 7 * 3  # two statuses and the fallbacks
                assert arm.errors == arm.requests  # 503s, fallbacks and broken streams
                assert sum(arm.latencies["ttft"].values()) == pytest.approx(5, abs=2)
                assert len(arm.latencies["tpot"]) > 1
