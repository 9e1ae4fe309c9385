"""What the router and the variants count, and how: through Ray Serve's metrics."""

from collections.abc import Mapping
from typing import Any, Protocol

from serve_app.domain.checkpoint import VariantCard
from serve_app.domain.observation import Observation
from serve_app.routing.ladder import LadderState, shares_for
from serve_app.telemetry import names
from serve_app.telemetry.admission_counts import AdmissionCounts
from serve_app.telemetry.put_off import PutOff

_BREAKER_LEVELS = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


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

    def retried(self, variant: str) -> None:
        """A variant failed a request before its first byte; another attempt is made."""

    def retry_refused(self, variant: str) -> None:
        """The same, and it is not: the retry budget is spent."""

    def breaker_changed(self, variant: str, state: str) -> None:
        """A variant's circuit breaker is `closed`, `open` or `half_open` from now on."""

    def timed_out(self, variant: str, where: str) -> None:
        """A request's time was up: while `waiting`, before the `first_byte`, in the `stream`, or
        at the end of this replica's `drain`."""

    def decided(self, own_s: float) -> None:
        """A request's variant was chosen, after so many seconds of the router's own."""

    def stands(
        self, variant: str, *, ready: float, in_flight: int, breaker: str | None = None
    ) -> None:
        """Told every few seconds of each variant. `ready`: 1, 0.5 asleep, 0; `breaker` None: it
        has none. Ray forgets a gauge that is not set again: a variant that is gone disappears."""

    def split(self, alias: str, shares_bp: Mapping[str, int]) -> None:
        """The same of each public name: the split in force."""


class ServeMetrics:
    """Counts through `ray.serve.metrics`, which labels each series with application and replica.

    What is told of every request is put off. Make it where the loop that serves requests runs.
    """

    def __init__(self) -> None:
        self._put_off = PutOff()
        self._requests = _counter(names.ROUTER_REQUESTS)
        self._fallbacks = _counter(names.ROUTER_FALLBACKS)
        self._broken = _counter(names.ROUTER_BROKEN_STREAMS)
        self._ttft = _histogram(names.ROUTER_TTFT)
        self._tpot = _histogram(names.ROUTER_TPOT)
        self._duration = _histogram(names.ROUTER_DURATION)
        self._retries = _counter(names.ROUTER_RETRIES)
        self._breaker_state = _gauge(names.ROUTER_BREAKER_STATE)
        self._breaker_changes = _counter(names.ROUTER_BREAKER_CHANGES)
        self._deadlines = _counter(names.ROUTER_DEADLINES)
        self._overhead = _histogram(names.ROUTER_OVERHEAD)
        self._in_flight = _gauge(names.ROUTER_IN_FLIGHT)
        self._ready = _gauge(names.ROUTER_VARIANT_READY)
        self._split = _gauge(names.ROUTER_SPLIT)

    def answered(self, variant: str, reason: str, status: int) -> None:
        """Labels come from our own closed sets, never from the request."""
        tags = {"variant": variant, "reason": reason, "status": str(status)}
        self._put_off.add(self._requests.inc, 1.0, tags)

    def fell_back(self, variant: str) -> None:
        """Counted per attempt that failed."""
        self._fallbacks.inc(tags={"variant": variant})

    def broke_off(self, variant: str) -> None:
        """Counted per answer."""
        self._broken.inc(tags={"variant": variant})

    def retried(self, variant: str) -> None:
        """Counted per attempt that is made again."""
        self._retries.inc(tags={"variant": variant, "outcome": "asked"})

    def retry_refused(self, variant: str) -> None:
        """Counted per request that fails for it."""
        self._retries.inc(tags={"variant": variant, "outcome": "refused"})

    def breaker_changed(self, variant: str, state: str) -> None:
        """States are a closed set."""
        self._breaker_state.set(_BREAKER_LEVELS[state], tags={"variant": variant})
        self._breaker_changes.inc(tags={"variant": variant, "state": state})

    def timed_out(self, variant: str, where: str) -> None:
        """Counted per request."""
        self._deadlines.inc(tags={"variant": variant, "where": where})

    def decided(self, own_s: float) -> None:
        """One sample per request."""
        self._put_off.add(self._overhead.observe, own_s)

    def stands(
        self, variant: str, *, ready: float, in_flight: int, breaker: str | None = None
    ) -> None:
        """No breaker is no sample."""
        tags = {"variant": variant}
        self._ready.set(ready, tags=tags)
        self._in_flight.set(in_flight, tags=tags)
        if breaker is not None:
            self._breaker_state.set(_BREAKER_LEVELS[breaker], tags=tags)

    def split(self, alias: str, shares_bp: Mapping[str, int]) -> None:
        """Variants with no share have a sample, too."""
        for variant, share_bp in shares_bp.items():
            self._split.set(share_bp, tags={"alias": alias, "variant": variant})

    def observed(self, seen: Observation) -> None:
        """Latencies are those of whole answers without an error: what was served."""
        if not seen.whole or seen.status >= 400:
            return
        tags = {"variant": seen.variant}
        if seen.ttft_s is not None:
            self._put_off.add(self._ttft.observe, seen.ttft_s, tags)
        self._put_off.add(self._duration.observe, seen.duration_s, tags)
        if seen.tpot_s is not None:
            self._put_off.add(self._tpot.observe, seen.tpot_s, tags)

    def flush(self) -> None:
        """Make what was put off."""
        self._put_off.flush()


class LadderMetrics(Protocol):
    """Told when a precision ladder changes; must not raise."""

    def moved(self, before: LadderState, now: LadderState) -> None:
        """Limits or shares changed."""

    def stands(self, now: LadderState) -> None:
        """Told every few seconds, since Ray forgets a gauge that is not set again."""


class ServeLadderMetrics:
    """Gauges and a counter through `ray.serve.metrics`, for the ladder of one public name."""

    def __init__(self, alias: str) -> None:
        self._alias = {"alias": alias}
        self._share = _gauge(names.LADDER_SHARE)
        self._limit = _gauge(names.LADDER_LIMIT)
        self._rung = _gauge(names.LADDER_RUNG)
        self._bottom = _gauge(names.LADDER_BOTTOM_SHARE)
        self._moves = _counter(names.LADDER_MOVES)

    def moved(self, before: LadderState, now: LadderState) -> None:
        """Gates that were moved are counted."""
        self.stands(now)
        for old, new in zip(before.gates, now.gates, strict=True):
            if old.keep_bp != new.keep_bp:
                direction = "down" if new.keep_bp < old.keep_bp else "up"
                self._moves.inc(
                    tags={**self._alias, "variant": new.variant, "direction": direction}
                )

    def stands(self, now: LadderState) -> None:
        """A rung that has no limit yet is no sample."""
        shares_bp = shares_for(now)
        for variant, share_bp in shares_bp.items():
            self._share.set(share_bp, tags={**self._alias, "variant": variant})
        for gate in now.gates:
            if gate.limit is not None:
                self._limit.set(gate.limit, tags={**self._alias, "variant": gate.variant})
        self._rung.set(now.rungs.index(now.rung), tags=self._alias)
        self._bottom.set(shares_bp[now.last], tags=self._alias)


class AdmissionMetrics(Protocol):
    """Told once a second what admission counted in it; must not raise."""

    def report(self, counts: AdmissionCounts) -> None:
        """`counts` are since the last report."""


class ServeAdmissionMetrics:
    """Counts through `ray.serve.metrics`; tenants' names are bounded by `AdmissionCounts`."""

    def __init__(self) -> None:
        self._rejected = _counter(names.ADMISSION_REJECTED)
        self._in_flight = _gauge(names.ADMISSION_IN_FLIGHT)
        self._waiting = _gauge(names.ADMISSION_WAITING)
        self._wait = _histogram(names.ADMISSION_WAIT)
        self._keys_stale = _gauge(names.ADMISSION_KEYS_STALE)
        self._requests = _counter(names.TENANT_REQUESTS)
        self._tokens = _counter(names.TENANT_TOKENS)

    def report(self, counts: AdmissionCounts) -> None:
        """Counters take what was added, gauges what is now."""
        for (tenant, reason), n in counts.rejected.items():
            self._rejected.inc(n, tags={"tenant": tenant, "reason": reason})
        for tenant, n in counts.requests.items():
            self._requests.inc(n, tags={"tenant": tenant})
        for (tenant, kind), n in counts.tokens.items():
            self._tokens.inc(n, tags={"tenant": tenant, "kind": kind})
        for wait_s in counts.waits_s:
            self._wait.observe(wait_s)
        self._in_flight.set(counts.in_flight)
        self._waiting.set(counts.waiting)
        if counts.keys_stale is not None:
            self._keys_stale.set(int(counts.keys_stale))


class ServeMemoryMetrics:
    """Gauges through `ray.serve.metrics`: plan and actual of one variant's engine."""

    def __init__(self, variant: str) -> None:
        self._variant = variant
        self._planned = _gauge(names.MEMORY_PLANNED)
        self._held = _gauge(names.MEMORY_HELD)
        self._total = _gauge(names.MEMORY_TOTAL)

    def planned(self, device: str, n_bytes: int) -> None:
        """The same at every sample."""
        self._planned.set(n_bytes, tags={"variant": self._variant, "device": device})

    def total(self, device: str, n_bytes: int) -> None:
        """The same at every sample."""
        self._total.set(n_bytes, tags={"variant": self._variant, "device": device})

    def held(self, device: str, n_bytes: int, source: str) -> None:
        """Where nobody can tell there is no sample."""
        tags = {"variant": self._variant, "device": device, "source": source}
        self._held.set(n_bytes, tags=tags)


class LoadMetrics(Protocol):
    """Told every few seconds how busy an engine is; must not raise."""

    def load(self, running: int | None, waiting: int | None, kv_use: float | None) -> None:
        """Requests that it works on and that it holds back, and the share of its KV cache in use;
        None where it does not say."""

    def facts(self, card: VariantCard, started_s: float, gpu: tuple[str, float] | None) -> None:
        """What the engine is, since when (seconds since 1970), and the share of which type of GPU
        its plan gives it; None: it has none."""


class ServeLoadMetrics:
    """Gauges through `ray.serve.metrics`: how busy one variant's engine is, and what it is."""

    def __init__(self, variant: str) -> None:
        self._tags = {"variant": variant}
        self._running = _gauge(names.ENGINE_RUNNING)
        self._waiting = _gauge(names.ENGINE_WAITING)
        self._kv_use = _gauge(names.ENGINE_KV_USE)
        self._weights = _gauge(names.ENGINE_WEIGHTS)
        self._started = _gauge(names.ENGINE_STARTED)
        self._fraction = _gauge(names.ENGINE_FRACTION)

    def facts(self, card: VariantCard, started_s: float, gpu: tuple[str, float] | None) -> None:
        """Bytes that nobody told are no sample."""
        self._started.set(started_s, tags=self._tags)
        if card.weight_bytes is not None:
            tags = {**self._tags, "method": card.method, "bits": str(card.bits or "")}
            self._weights.set(card.weight_bytes, tags=tags)
        if gpu is not None:
            self._fraction.set(gpu[1], tags={**self._tags, "gpu": gpu[0]})

    def load(self, running: int | None, waiting: int | None, kv_use: float | None) -> None:
        """What is not known is no sample."""
        samples = (self._running, running), (self._waiting, waiting), (self._kv_use, kv_use)
        for gauge, value in samples:
            if value is not None:
                gauge.set(value, tags=self._tags)


class ShadowMetrics(Protocol):
    """Told what became of mirrored requests: `variant` served, `shadow` was asked as well.

    Kinds are closed sets: `telemetry.names` lists them. Must be cheap and must not raise.
    """

    def shadow_mirrored(self, variant: str, shadow: str, kind: str) -> None:
        """Both answered."""

    def shadow_dropped(self, variant: str, shadow: str, kind: str) -> None:
        """There is nothing to compare; the kind is the reason."""

    def shadow_agreement(self, variant: str, shadow: str, kind: str, share: float) -> None:
        """How much both answers agree, from 0 to 1."""

    def shadow_length_ratio(self, variant: str, shadow: str, kind: str, ratio: float) -> None:
        """The shadow's length over the primary's."""

    def shadow_latency(self, variant: str, shadow: str, kind: str, seconds: float) -> None:
        """A time of either side."""


class ServeShadowMetrics:
    """Through `ray.serve.metrics`."""

    def __init__(self) -> None:
        self._mirrored = _counter(names.SHADOW_MIRRORED)
        self._dropped = _counter(names.SHADOW_DROPPED)
        self._agreement = _histogram(names.SHADOW_AGREEMENT)
        self._length = _histogram(names.SHADOW_LENGTH)
        self._latency = _histogram(names.SHADOW_LATENCY)

    def shadow_mirrored(self, variant: str, shadow: str, kind: str) -> None:
        """Counted per request."""
        self._mirrored.inc(tags={"variant": variant, "shadow": shadow, "kind": kind})

    def shadow_dropped(self, variant: str, shadow: str, kind: str) -> None:
        """Counted per request."""
        self._dropped.inc(tags={"variant": variant, "shadow": shadow, "kind": kind})

    def shadow_agreement(self, variant: str, shadow: str, kind: str, share: float) -> None:
        """One sample per request and kind."""
        self._agreement.observe(share, tags={"variant": variant, "shadow": shadow, "kind": kind})

    def shadow_length_ratio(self, variant: str, shadow: str, kind: str, ratio: float) -> None:
        """One sample per request."""
        self._length.observe(ratio, tags={"variant": variant, "shadow": shadow, "kind": kind})

    def shadow_latency(self, variant: str, shadow: str, kind: str, seconds: float) -> None:
        """One sample per request and kind."""
        self._latency.observe(seconds, tags={"variant": variant, "shadow": shadow, "kind": kind})


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
