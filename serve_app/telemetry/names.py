"""The one home of metric names, their labels and their meaning."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricName:
    """A metric as Prometheus will show it (Ray adds the prefix `ray_`)."""

    name: str
    description: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class HistogramName(MetricName):
    """A histogram, with the upper bounds of its buckets."""

    buckets: tuple[float, ...]


def _geometric(first: float, last: float, per_decade: int) -> tuple[float, ...]:
    """Bounds from `first` to `last`, `per_decade` for each power of ten, to three digits.

    A quantile read off such buckets is wrong by half their width at most: 12 a decade, 10 %.
    """
    steps = round(math.log10(last / first) * per_decade)
    return tuple(float(f"{first * 10 ** (i / per_decade):.3g}") for i in range(steps + 1))


TTFT_BUCKETS_S = _geometric(0.001, 100.0, 12)
TPOT_BUCKETS_S = _geometric(0.0001, 10.0, 12)

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
ROUTER_TTFT = HistogramName(
    "quantile_router_ttft_seconds",
    "From the whole request at the router to the first byte of its answer's body.",
    ("variant",),
    TTFT_BUCKETS_S,
)
ROUTER_TPOT = HistogramName(
    "quantile_router_tpot_seconds",
    "Time per output token after the first, of answers that tell their usage.",
    ("variant",),
    TPOT_BUCKETS_S,
)
ROUTER_DURATION = HistogramName(
    "quantile_router_duration_seconds",
    "From the whole request at the router to the last byte of its answer.",
    ("variant",),
    TTFT_BUCKETS_S,
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
