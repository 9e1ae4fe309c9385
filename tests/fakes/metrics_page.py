"""A metrics page with every series of ours, as Ray's agent shows them, under steady traffic."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from serve_app.telemetry import names
from serve_app.telemetry.names import HistogramName, MetricName

LABELS: dict[str, tuple[str, ...]] = {
    "variant": ("bf16", "awq"),
    "shadow": ("int8",),
    "alias": ("m",),
    "tenant": ("acme",),
    "reason": ("weighted",),
    "status": ("200", "503"),
    "kind": ("exact", "greedy", "token", "primary_ttft"),
    "model": ("m",),
    "candidate": ("awq",),
    "guard": ("ttft",),
    "verdict": ("continue", "rollback"),
    "device": ("GPU-1",),
    "source": ("pids",),
    "gpu": ("L4",),
    "method": ("awq",),
    "bits": ("4",),
    "outcome": ("asked", "refused"),
    "state": ("open",),
    "where": ("stream",),
    "direction": ("down",),
}
GAUGES = {
    "quantile_router_variant_ready": 1.0,
    "quantile_router_split_bp": 5000.0,
    "quantile_router_breaker_open": 0.0,
    "quantile_admission_keys_stale": 0.0,
    "quantile_rollout_verdict": 0.0,
    "quantile_ladder_bottom_share_bp": 0.0,
    "quantile_engine_memory_held_bytes": 7e9,
    "quantile_engine_memory_planned_bytes": 8e9,
    "quantile_engine_device_bytes": 24e9,
}
OTHERS = {
    "ray_serve_deployment_replica_healthy": "gauge",
    "ray_serve_autoscaling_target_replicas": "gauge",
    "ray_serve_health_check_latency_ms": "histogram",
    "ray_serve_event_loop_scheduling_latency_ms": "histogram",
    "ray_node_mem_used": "gauge",
    "ray_node_mem_total": "gauge",
    "ray_node_cpu_utilization": "gauge",
    "ray_component_uss_bytes": "gauge",
    "ray_vllm_num_requests_running": "gauge",
    "ray_vllm_generation_tokens": "counter",
    "ray_vllm_prompt_tokens": "counter",
    "ray_vllm_prefix_cache_hits": "counter",
    "ray_vllm_prefix_cache_queries": "counter",
    "ray_vllm_num_preemptions": "counter",
    "ray_vllm_inter_token_latency_seconds": "histogram",
    "ray_vllm_request_queue_time_seconds": "histogram",
    "haproxy_frontend_http_requests": "counter",
    "haproxy_backend_connection_errors": "counter",
}
_OTHER_LABELS = {
    "variant": "awq", "method": "awq", "bits": "4", "application": "router",
    "ip": "127.0.0.1", "Component": "raylet", "proxy": "http_frontend",
}  # fmt: skip
_SERVE = {"application": "router", "deployment": "D", "replica": "r1"}


class Traffic:
    """Collects a page in which counters have grown by one a second since it was made.

    `gauges` replaces values of gauges, by our names; change it at any time.
    """

    def __init__(self, gauges: Mapping[str, float] | None = None) -> None:
        self.gauges = {**GAUGES, **(gauges or {})}
        self._began_s = time.time() - 1000.0

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for metric in names.every_metric():
            yield self._ours(metric)
        for name, kind in OTHERS.items():
            yield self._family(name, kind, [_OTHER_LABELS], 1.0)

    def _ours(self, metric: MetricName) -> Metric:
        is_plain = metric.name.startswith("quantile_rollout_")
        rows = [
            dict(zip(metric.labels, values, strict=True)) | ({} if is_plain else _SERVE)
            for values in product(*(LABELS[label] for label in metric.labels))
        ]
        name = metric.name if is_plain else f"{names.RAY_PREFIX}{metric.name}"
        kind = "counter" if name.endswith("_total") else "gauge"
        if isinstance(metric, HistogramName):
            return self._family(name, "histogram", rows, 0.0, metric.buckets)
        value = self.gauges.get(metric.name, 1.0)
        if metric.name == names.ENGINE_STARTED.name:
            value = time.time() - 100.0
        return self._family(name.removesuffix("_total"), kind, rows, value)

    def _family(
        self,
        name: str,
        kind: str,
        rows: list[dict[str, str]],
        value: float,
        bounds: tuple[float, ...] = (0.01, 0.1, 1.0),
    ) -> Metric:
        n = time.time() - self._began_s
        labels = tuple(rows[0])
        values = [tuple(row.values()) for row in rows]
        if kind == "histogram":
            histogram = HistogramMetricFamily(name, name, labels=labels)
            shares = [(i + 1) / len(bounds) for i in range(len(bounds))]
            buckets = [(str(float(b)), n * s) for b, s in zip(bounds, shares, strict=True)]
            for each in values:
                histogram.add_metric(each, [*buckets, ("+Inf", n)], n)
            return histogram
        if kind == "counter":
            counter = CounterMetricFamily(name, name, labels=labels)
            for each in values:
                counter.add_metric(each, n)
            return counter
        gauge = GaugeMetricFamily(name, name, labels=labels)
        for each in values:
            gauge.add_metric(each, value)
        return gauge


@contextmanager
def metrics_page(traffic: Traffic) -> Iterator[str]:
    """Serve the page; yields `127.0.0.1:<port>`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(traffic)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
