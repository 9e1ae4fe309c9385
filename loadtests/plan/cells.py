"""When each request is sent, to which variant, and what it asks: pure and seeded.

The whole plan follows from the campaign, so any process (a worker, a later report) can make it
again and take its part of it.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loadtests.campaign import Campaign, LoadStage
from serve_app.domain.units import NS_PER_S

Phase = Literal["warmup", "measured", "cooldown"]


@dataclass(frozen=True)
class PlannedRequest:
    """One arrival: `offset_ns` after the start of its cell."""

    offset_ns: int
    phase: Phase
    prompt: int
    """Index into the campaign's prompts."""
    max_tokens: int


@dataclass(frozen=True)
class Cell:
    """One variant under one stage in one block; the unit that runs without a pause."""

    index: int
    stage: str
    block: int
    variant: str
    window_ns: tuple[int, int]
    """Start and end of the measured window, from the start of the cell."""
    end_ns: int
    """End of the arrivals, from the start of the cell."""
    requests: tuple[PlannedRequest, ...]

    @property
    def window_s(self) -> float:
        """Length of the measured window in seconds."""
        return (self.window_ns[1] - self.window_ns[0]) / NS_PER_S


def arrival_offsets(
    kind: Literal["constant", "poisson"], rate_per_s: float, length_s: float, rng: random.Random
) -> tuple[float, ...]:
    """Seconds of the arrivals in `[0, length_s)`, ascending; `round(rate * length)` of them.

    `poisson` draws independent uniform times, which is a Poisson process conditioned on its
    count (Kingman, Poisson Processes, 2.4): the gaps are bursty and the offered rate is exact.
    """
    n = math.floor(rate_per_s * length_s + 0.5)
    if kind == "constant":
        return tuple(i / rate_per_s for i in range(n) if i / rate_per_s < length_s)
    return tuple(sorted(rng.random() * length_s for _ in range(n)))


def plan_cells(campaign: Campaign, n_prompts: int) -> tuple[Cell, ...]:
    """Every cell in the order in which it runs.

    Blocks are the outer loop, so that drift of the machine meets every stage and variant.
    """
    cells: list[Cell] = []
    for block in range(campaign.blocks):
        for stage in campaign.stages:
            key = f"{campaign.seed}:{stage.name}:{block}"
            requests = tuple(_requests(campaign, stage, n_prompts, random.Random(key)))
            order = list(campaign.variant_names())
            random.Random(f"{key}:order").shuffle(order)
            for variant in order:
                cells.append(_cell(len(cells), campaign, stage, block, variant, requests))
    return tuple(cells)


def _cell(
    index: int,
    campaign: Campaign,
    stage: LoadStage,
    block: int,
    variant: str,
    requests: tuple[PlannedRequest, ...],
) -> Cell:
    start_s = campaign.warmup_s
    end_s = start_s + stage.duration_s
    return Cell(
        index=index,
        stage=stage.name,
        block=block,
        variant=variant,
        window_ns=(_ns(start_s), _ns(end_s)),
        end_ns=_ns(end_s + campaign.cooldown_s),
        requests=requests,
    )


def _requests(
    campaign: Campaign, stage: LoadStage, n_prompts: int, rng: random.Random
) -> Iterator[PlannedRequest]:
    lowest, highest = campaign.workload.max_tokens
    start_s = 0.0
    phases: Sequence[tuple[Phase, float]] = (
        ("warmup", campaign.warmup_s),
        ("measured", stage.duration_s),
        ("cooldown", campaign.cooldown_s),
    )
    for phase, length_s in phases:
        for offset_s in arrival_offsets(stage.kind, stage.rate_per_s, length_s, rng):
            yield PlannedRequest(
                offset_ns=_ns(start_s + offset_s),
                phase=phase,
                prompt=rng.randrange(n_prompts),
                max_tokens=rng.randint(lowest, highest),
            )
        start_s += length_s


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
