"""Evidence from the router's own counters and histograms, read off Ray's Prometheus pages, or off
the one page on which a Prometheus that scrapes them all passes them on (`/federate`).

A request that the candidate failed and that another variant then answered is a failure of the
candidate: the router counts it as a fallback, and so do we. Pinned requests are left out of the
counts (nobody drew their variant); the histograms have them in.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from loadtests.campaign import Metrics
from loadtests.observe.pages import page_urls, read_page, samples_of
from loadtests.records.manifest import MetricSample
from serve_app.config.rollout_evidence import MetricsConfig
from serve_app.domain.traffic import RouteReason
from serve_app.rollout.observations import ArmWindow, Look, Window
from serve_app.rollouts.evidence import Clock
from serve_app.telemetry import names

READ_WITHIN_S = 5.0
_PREFIX = "ray_"
_REPLICA = "replica"
"""Ray Serve's own label, on every metric of a replica."""
_LATENCIES = {"ttft": names.ROUTER_TTFT.name, "tpot": names.ROUTER_TPOT.name}
_NOT_DRAWN = {RouteReason.PINNED, RouteReason.FALLBACK, RouteReason.REJECTED, RouteReason.LOCAL}
_SERIES = tuple(
    f"{prefix}{name}"
    for prefix in ("", _PREFIX)
    for name in (
        names.ROUTER_REQUESTS.name,
        names.ROUTER_FALLBACKS.name,
        names.ROUTER_BROKEN_STREAMS.name,
        names.ROUTER_VARIANT_READY.name,
        *(f"{name}_bucket" for name in _LATENCIES.values()),
    )
)
Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name without Ray's prefix, and labels."""
Totals = dict[Series, float]


class MetricsEvidence:
    """Implements `Evidence`."""

    mark = 0
    is_exhausted = False

    def __init__(
        self,
        config: MetricsConfig,
        baseline: str,
        candidate: str,
        clock: Clock,
        read: Callable[[str, float], str] = read_page,
    ) -> None:
        self.look_s = min(5.0, config.window_s)
        self._config = config
        self._pages = Metrics(urls=config.urls, file_sd=config.file_sd)
        self._arms = baseline, candidate
        self._clock = clock
        self._read = read
        self._base: Totals | None = None
        self._base_s = 0.0
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """As in `Evidence`."""
        return self._trouble

    async def begin(self) -> None:
        """As in `Evidence`."""
        self._base = await self._totals()
        self._base_s = self._clock.now()

    async def take(self) -> Look:
        """As in `Evidence`: one window, once it is long enough and both arms have enough."""
        if self._base is None:
            await self.begin()
            return Look()
        if self._clock.now() - self._base_s < self._config.window_s:
            return Look()
        totals = await self._totals()
        if totals is None:
            return Look()  # the window grows until every page can be read again
        grown = growth(self._base, totals)
        baseline, candidate = (arm_window(grown, name) for name in self._arms)
        if min(baseline.requests, candidate.requests) < self._config.min_window_requests:
            return Look()
        self._base, self._base_s = self._base | totals, self._clock.now()
        return Look(windows=(Window(baseline=baseline, candidate=candidate),))

    async def close(self) -> None:
        """As in `Evidence`."""

    async def _totals(self) -> Totals | None:
        """All series of all pages; None, with the trouble noted, where a page cannot be read."""
        try:
            totals = await asyncio.to_thread(self._read_all)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            self._trouble = f"metrics: {error}"
            return None
        told = {
            dict(labels).get("variant")
            for name, labels in totals
            if name == names.ROUTER_REQUESTS.name
        }
        missing = [name for name in self._arms if name not in told]
        self._trouble = f"metrics: no requests of {', '.join(missing)} yet" if missing else None
        return totals

    def _read_all(self) -> Totals:
        totals: Totals = {}
        for url in page_urls(self._pages):
            for sample in samples_of(self._read(url, READ_WITHIN_S), _SERIES, 0):
                totals[_series(sample, url)] = sample.value
        return totals


def growth(before: Mapping[Series, float], after: Mapping[Series, float]) -> Totals:
    """By how much each counter grew; one that begins anew (its process did) counts from 0.

    So does one that is new of a replica that was there before: its first error, say. Of a replica
    that `before` knows nothing of nothing counts: it may be new, or a scrape of it may have failed
    just then, and what it has counted all its life is none of this window. Every replica of the
    router says from its start which variants are ready, so that it is known before it counts.
    """
    known = {_replica(series) for series in before}
    grown = {}
    for series, value in after.items():
        if _replica(series) not in known:
            continue
        old = before.get(series, 0.0)
        grown[series] = value - old if value >= old else value
    return grown


def arm_window(grown: Mapping[Series, float], variant: str) -> ArmWindow:
    """One arm's requests of a window."""
    requests, errors = 0.0, 0.0
    buckets: dict[str, dict[float, float]] = {name: defaultdict(float) for name in _LATENCIES}
    for (name, label_items), value in grown.items():
        labels = dict(label_items)
        if labels.get("variant") != variant:
            continue
        if name == names.ROUTER_REQUESTS.name and labels.get("reason") not in _NOT_DRAWN:
            requests += value
            errors += value if labels.get("status", "").startswith("5") else 0
        elif name == names.ROUTER_FALLBACKS.name:
            requests += value
            errors += value
        elif name == names.ROUTER_BROKEN_STREAMS.name:
            errors += value
        for latency, metric in _LATENCIES.items():
            if name == f"{metric}_bucket":
                buckets[latency][float(labels["le"])] += value
    return ArmWindow(
        requests=round(requests),
        errors=round(min(errors, requests)),
        latencies={name: apart(counts) for name, counts in buckets.items() if counts},
    )


def apart(cumulative: Mapping[float, float]) -> dict[float, int]:
    """The requests of each bucket: upper edge in seconds -> requests, of cumulative counts."""
    found: dict[float, int] = {}
    below = 0
    for edge in sorted(cumulative):
        n = round(cumulative[edge])
        if n > below:
            found[edge] = n - below
            below = n
    return found


def _replica(series: Series) -> str | None:
    return dict(series[1]).get(_REPLICA)


def _series(sample: MetricSample, url: str) -> Series:
    labels: Iterable[tuple[str, Any]] = {**sample.labels, "page": url}.items()
    return sample.name.removeprefix(_PREFIX), tuple(sorted(labels))
