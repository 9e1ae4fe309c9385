"""What is known of the variants when one is to be chosen: plain data. Missing is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.advise.contrasts import Contrast, Interval
from serve_app.domain.verdict import Verdict


class AxisKind(StrEnum):
    """What variants are compared by."""

    QUALITY = "quality"
    LATENCY = "latency"
    MEMORY = "memory"
    COST = "cost"


@dataclass(frozen=True)
class Axis:
    """One thing to be good at; latency is one per load level."""

    kind: AxisKind
    level: str | None = None

    def __str__(self) -> str:
        return str(self.kind) if self.level is None else f"{self.kind} at {self.level}"


QUALITY, MEMORY, COST = Axis(AxisKind.QUALITY), Axis(AxisKind.MEMORY), Axis(AxisKind.COST)


def latency_at(level: str) -> Axis:
    """The axis of the latency at one load level."""
    return Axis(AxisKind.LATENCY, level)


@dataclass(frozen=True)
class Quality:
    """What the evaluation says of a variant.

    `loss` is the relative loss of score against the baseline, positive where the variant is the
    worse one: 0.01 for one in a hundred right answers lost. Of the baseline it is exactly 0.
    """

    verdict: Verdict
    reason: str = ""
    score: Interval | None = None
    loss: Interval | None = None


@dataclass(frozen=True)
class Level:
    """A load level of a campaign, and where it was measured."""

    name: str
    load: str
    """As `4/s`, or `8 in flight`."""
    run: str
    is_gated: bool = True
    """Whether it counts towards the SLO."""


@dataclass(frozen=True)
class AtLevel:
    """One variant under one load. `latency_ms` is infinite where failures reach the percentile."""

    latency_ms: Interval | None
    slo: Verdict | None
    """None: the campaign has no SLO. `error`: the row is invalid."""
    reason: str = ""


@dataclass(frozen=True)
class Capacity:
    """What one replica carries within the SLO. `high` of the intervals is None where nothing that
    was tried failed: the variant may carry more.
    """

    requests_per_s: Interval
    output_tokens_per_s: Interval
    source: str


@dataclass(frozen=True)
class Memory:
    """What one replica takes. Without a GPU there is no plan, and only the weights are known."""

    weight_bytes: int
    need_bytes: int | None = None
    gpu: str | None = None
    fraction_bp: int | None = None
    """Of each GPU that a replica runs on."""
    ranks: int = 1
    replicas_per_gpu: int | None = None
    """0 where it needs several GPUs."""
    min_gpus: int | None = None
    """GPUs under the fewest replicas that the Serve file keeps of it, with none but it on them."""

    @property
    def compared_bytes(self) -> int:
        """Planned bytes of all ranks, where there is a plan; else those of the weights."""
        return self.weight_bytes if self.need_bytes is None else self.need_bytes * self.ranks


@dataclass(frozen=True)
class VariantEvidence:
    """All that is known of one variant."""

    name: str
    quality: Quality | None = None
    gate: Verdict | None = None
    """Of the correctness gate, which compares the engine with the weights; None: no record."""
    at: Mapping[str, AtLevel] = field(default_factory=dict)
    """By load level."""
    capacity: Capacity | None = None
    overload: str | None = None
    """That it misses the SLO at the lowest rate that was tried."""
    memory: Memory | None = None
    memory_refusal: str | None = None
    """Why it runs on none of the GPU types that were asked for."""
    cost_usd_per_million: Interval | None = None
    """Of output tokens, at the capacity."""
    cost_gap: str | None = None
    """What would give it a cost, or bound the one that it has."""


@dataclass(frozen=True)
class Evidence:
    """What is known of all of them, and how they stand to each other, pair by pair."""

    model: str
    baseline: str
    variants: tuple[VariantEvidence, ...]
    levels: tuple[Level, ...]
    metric: str
    """The latency that decides, as `E2E P95`."""
    contrasts: Mapping[Axis, tuple[Contrast, ...]]
    broken: tuple[str, ...] = ()
    """Why the evidence as a whole cannot be used."""
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> VariantEvidence:
        return next(each for each in self.variants if each.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """The variants, the baseline among them, in the order in which they are reported."""
        return tuple(each.name for each in self.variants)

    def contrast(self, axis: Axis, first: str, second: str) -> Contrast | None:
        """How `first` stands to `second`; None where nobody compared them."""
        for each in self.contrasts.get(axis, ()):
            if (each.first, each.second) == (first, second):
                return each
            if (each.first, each.second) == (second, first):
                return each.reversed()
        return None

    def axes(self, levels: tuple[str, ...] | None = None) -> tuple[Axis, ...]:
        """Axes that have evidence of some pair, latency at `levels` alone (None: all of them)."""
        wanted = {level.name for level in self.levels} if levels is None else set(levels)
        return tuple(
            axis
            for axis, contrasts in self.contrasts.items()
            if (axis.level is None or axis.level in wanted)
            and any(each.gain is not None or each.is_decided for each in contrasts)
        )
