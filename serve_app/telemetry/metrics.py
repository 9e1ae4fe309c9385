"""What the router and the variants count, and how: through Ray Serve's metrics."""

from typing import Any, Protocol

from serve_app.telemetry import names


class RouterMetrics(Protocol):
    """Told once per event; must be cheap and must not raise."""

    def answered(self, variant: str, reason: str, status: int) -> None:
        """A request was answered."""

    def fell_back(self, variant: str) -> None:
        """A variant could not take a request; another is asked."""

    def broke_off(self, variant: str) -> None:
        """An answer ended before its end."""


class ServeMetrics:
    """Counts through `ray.serve.metrics`, which labels each series with application and replica."""

    def __init__(self) -> None:
        self._requests = _counter(names.ROUTER_REQUESTS)
        self._fallbacks = _counter(names.ROUTER_FALLBACKS)
        self._broken = _counter(names.ROUTER_BROKEN_STREAMS)

    def answered(self, variant: str, reason: str, status: int) -> None:
        """Labels come from our own closed sets, never from the request."""
        self._requests.inc(tags={"variant": variant, "reason": reason, "status": str(status)})

    def fell_back(self, variant: str) -> None:
        """Counted per attempt that failed."""
        self._fallbacks.inc(tags={"variant": variant})

    def broke_off(self, variant: str) -> None:
        """Counted per answer."""
        self._broken.inc(tags={"variant": variant})


class ServeMemoryMetrics:
    """Gauges through `ray.serve.metrics`: plan and actual of one variant's engine."""

    def __init__(self, variant: str) -> None:
        self._variant = variant
        self._planned = _gauge(names.MEMORY_PLANNED)
        self._held = _gauge(names.MEMORY_HELD)

    def planned(self, device: str, n_bytes: int) -> None:
        """The same at every sample."""
        self._planned.set(n_bytes, tags={"variant": self._variant, "device": device})

    def held(self, device: str, n_bytes: int, source: str) -> None:
        """Where nobody can tell there is no sample."""
        tags = {"variant": self._variant, "device": device, "source": source}
        self._held.set(n_bytes, tags=tags)


def _gauge(metric: names.MetricName) -> Any:
    from ray.serve.metrics import Gauge

    return Gauge(metric.name, description=metric.description, tag_keys=metric.labels)


def _counter(metric: names.MetricName) -> Any:
    from ray.serve.metrics import Counter

    return Counter(metric.name, description=metric.description, tag_keys=metric.labels)
