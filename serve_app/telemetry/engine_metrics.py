"""An engine's own metrics through Ray's agent, told apart by variant, method and bits.

vLLM can write to Ray's metrics itself, at a cost in every step of the engine. Here its ordinary
registry, which costs it nothing more, is copied every few seconds (decision 0026). A counter or a
bucket of a histogram becomes a gauge of the same value: `rate` and `histogram_quantile` read it as
before, and a replica that starts anew is a counter reset. Names are those that vLLM's own Ray
logger gives, so that dashboards made for it find them: `vllm:prompt_tokens_total` is
`ray_vllm_prompt_tokens_total`.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from serve_app.domain.checkpoint import VariantCard
from serve_app.engines.samples import Sample

INTERVAL_S = 5.0
"""Ray's agent asks every ten seconds by default."""
AT_ONCE = 50
"""Series that are set before requests have their turn: well under a millisecond."""
_SANITIZED = re.compile(r"[^a-zA-Z0-9_]")
_OWN_LABELS = ("variant", "method", "bits")

logger = logging.getLogger("ray.serve")


class SeriesGauge(Protocol):
    """One metric: `ray.serve.metrics.Gauge`."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """The series' value now."""


MakeGauge = Callable[[str, tuple[str, ...]], SeriesGauge]


class EngineMetrics:
    """Copies the samples of one variant's engine."""

    def __init__(self, card: VariantCard, make_gauge: MakeGauge | None = None) -> None:
        self._labels = dict(
            zip(_OWN_LABELS, (card.name, card.method, str(card.bits or "")), strict=True)
        )
        self._make_gauge = make_gauge or _ray_gauge
        self._gauges: dict[tuple[str, tuple[str, ...]], SeriesGauge] = {}

    async def copy(self, samples: Iterable[Sample]) -> None:
        """Set every sample; other work has its turn in between."""
        for index, sample in enumerate(samples, 1):
            labels = dict(sample.labels) | self._labels
            key = sample.name, tuple(sorted(labels))
            gauge = self._gauges.get(key)
            if gauge is None:
                gauge = self._gauges[key] = self._make_gauge(
                    _SANITIZED.sub("_", sample.name), key[1]
                )
            gauge.set(sample.value, tags=labels)
            if index % AT_ONCE == 0:
                await asyncio.sleep(0)


async def keep_copying(engine: Any, metrics: EngineMetrics, interval_s: float = INTERVAL_S) -> None:
    """Copy an engine's samples until cancelled; what fails is logged once, and tried again."""
    failed = False
    while True:
        try:
            await metrics.copy(await engine.samples())
            failed = False
        except Exception:
            if not failed:
                logger.exception("the engine's own metrics could not be read; they stand still")
            failed = True
        await asyncio.sleep(interval_s)


def _ray_gauge(name: str, labels: tuple[str, ...]) -> SeriesGauge:
    from ray.serve.metrics import Gauge

    gauge: SeriesGauge = Gauge(
        name, description="The engine's own metric, copied by QuanTile.", tag_keys=labels
    )
    return gauge
