"""What the router and the variants count, and how: through Ray Serve's metrics."""

from typing import Any, Protocol

from serve_app.domain.observation import Observation
from serve_app.telemetry import names


class RouterMetrics(Protocol):
    """Told once per event; must be cheap and must not raise."""

    def answered(self, variant: str, reason: str, status: int) -> None:
        """A request was answered."""

    def fell_back(self, variant: str) -> None:
        """A variant could not take a request; another is asked."""

    def broke_off(self, variant: str) -> None:
        """An answer ended before its end."""

    def observed(self, seen: Observation) -> None:
        """An answer is over, whole or not."""


class ServeMetrics:
    """Counts through `ray.serve.metrics`, which labels each series with application and replica."""

    def __init__(self) -> None:
        self._requests = _counter(names.ROUTER_REQUESTS)
        self._fallbacks = _counter(names.ROUTER_FALLBACKS)
        self._broken = _counter(names.ROUTER_BROKEN_STREAMS)
        self._ttft = _histogram(names.ROUTER_TTFT)
        self._tpot = _histogram(names.ROUTER_TPOT)
        self._duration = _histogram(names.ROUTER_DURATION)

    def answered(self, variant: str, reason: str, status: int) -> None:
        """Labels come from our own closed sets, never from the request."""
        self._requests.inc(tags={"variant": variant, "reason": reason, "status": str(status)})

    def fell_back(self, variant: str) -> None:
        """Counted per attempt that failed."""
        self._fallbacks.inc(tags={"variant": variant})

    def broke_off(self, variant: str) -> None:
        """Counted per answer."""
        self._broken.inc(tags={"variant": variant})

    def observed(self, seen: Observation) -> None:
        """Latencies are those of whole answers without an error: what was served."""
        if not seen.whole or seen.status >= 400:
            return
        tags = {"variant": seen.variant}
        self._ttft.observe(seen.ttft_s, tags=tags)
        self._duration.observe(seen.duration_s, tags=tags)
        if seen.tpot_s is not None:
            self._tpot.observe(seen.tpot_s, tags=tags)


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


class LoadMetrics(Protocol):
    """Told every few seconds how busy an engine is; must not raise."""

    def load(self, running: int | None, waiting: int | None, kv_use: float | None) -> None:
        """Requests that it works on and that it holds back, and the share of its KV cache in use;
        None where it does not say."""


class ServeLoadMetrics:
    """Gauges through `ray.serve.metrics`: how busy one variant's engine is."""

    def __init__(self, variant: str) -> None:
        self._tags = {"variant": variant}
        self._running = _gauge(names.ENGINE_RUNNING)
        self._waiting = _gauge(names.ENGINE_WAITING)
        self._kv_use = _gauge(names.ENGINE_KV_USE)

    def load(self, running: int | None, waiting: int | None, kv_use: float | None) -> None:
        """What is not known is no sample."""
        samples = (self._running, running), (self._waiting, waiting), (self._kv_use, kv_use)
        for gauge, value in samples:
            if value is not None:
                gauge.set(value, tags=self._tags)


def _gauge(metric: names.MetricName) -> Any:
    from ray.serve.metrics import Gauge

    return Gauge(metric.name, description=metric.description, tag_keys=metric.labels)


def _histogram(metric: names.HistogramName) -> Any:
    from ray.serve.metrics import Histogram

    return Histogram(
        metric.name,
        description=metric.description,
        boundaries=list(metric.buckets),
        tag_keys=metric.labels,
    )


def _counter(metric: names.MetricName) -> Any:
    from ray.serve.metrics import Counter

    return Counter(metric.name, description=metric.description, tag_keys=metric.labels)
