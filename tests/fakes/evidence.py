"""Evidence for recommendations, made by hand: variants by their numbers, pairs by intervals."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from serve_app.advise.contrasts import Contrast, Interval, judge_gain, smaller_is_better
from serve_app.advise.evidence import (
    COST,
    MEMORY,
    QUALITY,
    AtLevel,
    Axis,
    Capacity,
    Evidence,
    Level,
    Memory,
    Quality,
    VariantEvidence,
    latency_at,
)
from serve_app.domain.verdict import Verdict

GIB = 1 << 30
QUALITY_MARGIN, LATENCY_MARGIN = 0.01, math.log(1.02)


class Made(NamedTuple):
    """One variant. None: not measured."""

    loss: float | None = 0.0
    latency_ms: Mapping[str, float] | None = None
    memory_gib: float | None = 16.0
    tokens_per_s: float | None = 1000.0
    usd: float | None = 1.0
    verdict: Verdict | None = Verdict.PASS
    slo: Verdict | None = Verdict.PASS
    gate: Verdict | None = Verdict.PASS


def evidence(
    variants: Mapping[str, Made],
    *,
    loss_width: float = 0.002,
    latency_width: float = 0.02,
    cost_width: float = 0.02,
    broken: tuple[str, ...] = (),
) -> Evidence:
    """The first variant is the baseline. Widths are half of the intervals: of losses, and of
    logarithms of latencies (paired) and of costs (each for itself).
    """
    levels = list(dict.fromkeys(k for made in variants.values() for k in made.latency_ms or {}))
    known = tuple(_variant(name, made, loss_width, cost_width) for name, made in variants.items())
    contrasts: dict[Axis, tuple[Contrast, ...]] = {
        QUALITY: tuple(_by_loss(variants, loss_width)),
        **{latency_at(level): tuple(_by_latency(variants, level, latency_width))
           for level in levels},
        MEMORY: tuple(_by_memory(known)),
        COST: tuple(_by_cost(known)),
    }  # fmt: skip
    return Evidence(
        model="m",
        baseline=next(iter(variants)),
        variants=known,
        levels=tuple(Level(name, f"{i + 1}/s", "run") for i, name in enumerate(levels)),
        metric="E2E P95",
        contrasts={axis: found for axis, found in contrasts.items() if found},
        broken=broken,
    )


def around(value: float, log_width: float) -> Interval:
    """An interval of that half width in logarithms."""
    return Interval(value, value * math.exp(-log_width), value * math.exp(log_width))


def _variant(name: str, made: Made, loss_width: float, cost_width: float) -> VariantEvidence:
    loss = None
    if made.loss is not None:
        loss = Interval(made.loss, made.loss - loss_width, made.loss + loss_width)
    quality = None
    if made.verdict is not None:
        score = None if made.loss is None else Interval(1 - made.loss)
        quality = Quality(made.verdict, score=score, loss=loss)
    n_bytes = None if made.memory_gib is None else int(made.memory_gib * GIB)
    return VariantEvidence(
        name,
        quality=quality,
        gate=made.gate,
        at={
            level: AtLevel(around(ms, 0.05), made.slo, "made so")
            for level, ms in (made.latency_ms or {}).items()
        },
        capacity=None
        if made.tokens_per_s is None
        else Capacity(around(made.tokens_per_s / 10, 0.1), around(made.tokens_per_s, 0.1), "made"),
        memory=None if n_bytes is None else Memory(n_bytes, n_bytes, "L4", 5000, 1, 2, 1),
        cost_usd_per_million=None if made.usd is None else around(made.usd, cost_width),
        cost_gap="a price" if made.usd is None else None,
    )


def _by_loss(variants: Mapping[str, Made], width: float):
    for (one, a), (other, b) in combinations(variants.items(), 2):
        if a.loss is not None and b.loss is not None:
            gain = b.loss - a.loss
            known = Interval(gain, gain - width, gain + width)
            yield judge_gain(one, other, known, QUALITY_MARGIN)


def _by_latency(variants: Mapping[str, Made], level: str, width: float):
    for (one, a), (other, b) in combinations(variants.items(), 2):
        x, y = (a.latency_ms or {}).get(level), (b.latency_ms or {}).get(level)
        if x is not None and y is not None:
            gain = math.log(y / x)
            known = Interval(gain, gain - width, gain + width)
            yield judge_gain(one, other, known, LATENCY_MARGIN)


def _by_memory(known: tuple[VariantEvidence, ...]):
    for one, other in combinations(known, 2):
        if one.memory is not None and other.memory is not None:
            a, b = (float(v.memory.compared_bytes) for v in (one, other))
            pair = Interval(a, a, a), Interval(b, b, b)
            yield smaller_is_better(one.name, other.name, *pair, math.log(1.01))


def _by_cost(known: tuple[VariantEvidence, ...]):
    for one, other in combinations(known, 2):
        costs = one.cost_usd_per_million, other.cost_usd_per_million
        if costs != (None, None):
            yield smaller_is_better(one.name, other.name, *costs, math.log(1.02))
