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
