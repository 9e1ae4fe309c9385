"""The one home of metric names, their labels and their meaning."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricName:
    """A metric as Prometheus will show it (Ray adds the prefix `ray_`)."""

    name: str
    description: str
    labels: tuple[str, ...]


ROUTER_REQUESTS = MetricName(
    "quantile_router_requests_total",
    "Requests relayed or refused, by the variant that served them and why it did.",
    ("variant", "reason", "status"),
)
ROUTER_FALLBACKS = MetricName(
    "quantile_router_fallbacks_total",
    "Attempts at a variant that could not take the request, so that another was asked.",
    ("variant",),
)
ROUTER_BROKEN_STREAMS = MetricName(
    "quantile_router_broken_streams_total",
    "Answers that broke off after their first byte.",
    ("variant",),
)
MEMORY_PLANNED = MetricName(
    "quantile_engine_memory_planned_bytes",
    "What the engine may hold on the device, by its memory plan.",
    ("variant", "device"),
)
MEMORY_HELD = MetricName(
    "quantile_engine_memory_held_bytes",
    "What the engine holds on the device: its processes' bytes now (source: pids), or what the "
    "device lost at its start, where it does not tell processes apart (source: start).",
    ("variant", "device", "source"),
)
ENGINE_RUNNING = MetricName(
    "quantile_engine_running_requests",
    "Requests that the engine works on at this moment: its batch.",
    ("variant",),
)
ENGINE_WAITING = MetricName(
    "quantile_engine_waiting_requests",
    "Requests that the engine took and holds back.",
    ("variant",),
)
ENGINE_KV_USE = MetricName(
    "quantile_engine_kv_use_ratio",
    "Share of the engine's KV cache in use, from 0 to 1.",
    ("variant",),
)
