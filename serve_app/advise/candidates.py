"""Who may be chosen at all: quality, the correctness gate, the SLO and limits, three-valued."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.advise.evidence import AxisKind, Evidence, VariantEvidence
from serve_app.domain.units import format_bytes
from serve_app.domain.verdict import Verdict


class Goal(StrEnum):
    """What the choice is for. Every goal holds the SLO and the quality bar."""

    HIGHEST_QUALITY = "highest-quality"
    CHEAPEST = "cheapest"
    MEMORY_BOUND = "memory-bound"
    """The highest quality that fits the bytes, or the GPUs, that there are."""
    BALANCED = "balanced"


DEFAULT_WEIGHTS: Mapping[AxisKind, float] = dict.fromkeys(AxisKind, 1.0)
DEFAULT_BAR = 0.01
"""Relative loss of score that is allowed: MLPerf's 99 % rule."""


@dataclass(frozen=True)
class Terms:
    """What is asked for. `levels`: the load levels that have to be held."""

    goal: Goal
    levels: tuple[str, ...]
    quality_bar: float | None = None
    """Relative loss of score; None: the evaluation's own verdict decides."""
    max_bytes: int | None = None
    """Of one replica, all its GPUs together."""
    max_gpus: int | None = None
    weights: Mapping[AxisKind, float] = field(default_factory=lambda: DEFAULT_WEIGHTS)

    @property
    def loss_unit(self) -> float:
        """The loss of quality that weighs as much as a factor of 2 elsewhere.

        A bar of 0 is no unit: the default's is taken.
        """
        return self.quality_bar or DEFAULT_BAR


class Status(StrEnum):
    """Whether a variant may be chosen."""

    OPEN = "open"
    OUT = "out"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Standing:
    """A variant's status, with every reason that it is not open."""

    name: str
    status: Status
    reasons: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """What to measure to know."""


@dataclass(frozen=True)
class _Doubt:
    reason: str
    measure: str | None = None
    """None: it is no doubt, the variant is out."""


def standing(evidence: Evidence, name: str, terms: Terms) -> Standing:
    """Whether this variant may be chosen under these terms."""
    variant = evidence[name]
    found = [
        *_by_gate(variant),
        *_by_quality(variant, terms.quality_bar, is_baseline=name == evidence.baseline),
        *_by_slo(variant, terms.levels),
        *_by_memory(variant, terms),
    ]
    out = tuple(each.reason for each in found if each.measure is None)
    if out:
        return Standing(name, Status.OUT, out)
    missing = tuple(dict.fromkeys(each.measure for each in found if each.measure is not None))
    status = Status.UNKNOWN if found else Status.OPEN
    return Standing(name, status, tuple(each.reason for each in found), missing)


def standings(
    evidence: Evidence, terms: Terms, names: Sequence[str] | None = None
) -> tuple[Standing, ...]:
    """Of all variants, in their order."""
    return tuple(standing(evidence, name, terms) for name in names or evidence.names)


def _by_gate(variant: VariantEvidence) -> Iterator[_Doubt]:
    if variant.gate in (Verdict.FAIL, Verdict.ERROR):
        yield _Doubt(f"the correctness gate says {variant.gate}: it loads, and is wrong")
    elif variant.gate is Verdict.INCONCLUSIVE:
        yield _Doubt("the correctness gate did not decide", f"run the gate of {variant.name} again")


def _by_quality(
    variant: VariantEvidence, bar: float | None, *, is_baseline: bool
) -> Iterator[_Doubt]:
    quality, measure = variant.quality, f"evaluate {variant.name}: quantile eval"
    if quality is None:
        if not is_baseline:  # the others are measured against it
            yield _Doubt("its quality was not evaluated", measure)
        return
    why = f": {quality.reason}" if quality.reason else ""
    if quality.verdict is Verdict.FAIL:
        yield _Doubt(f"its quality verdict is {quality.verdict}{why}")
        return
    if quality.verdict is Verdict.ERROR:  # of the evaluation: nothing is known of the variant
        yield _Doubt(f"its evaluation is broken{why}", f"evaluate {variant.name} again")
        return
    more = f"evaluate {variant.name} on more items: quantile eval"
    if quality.verdict is Verdict.INCONCLUSIVE:
        yield _Doubt(f"its quality is inconclusive{why}", more)
    if bar is None or is_baseline:
        return
    loss = quality.loss
    if loss is None:
        yield _Doubt("its loss against the baseline is not known", measure)
    elif loss.low is not None and loss.low > bar:
        yield _Doubt(f"it loses {loss.value:.2%} of the score, the bar is {bar:.2%}")
    elif loss.high is None or loss.high > bar:
        high = "an unknown share" if loss.high is None else f"{loss.high:.2%}"
        yield _Doubt(f"it may lose {high} of the score, the bar is {bar:.2%}", more)


def _by_slo(variant: VariantEvidence, levels: Sequence[str]) -> Iterator[_Doubt]:
    if variant.overload is not None:
        yield _Doubt(f"the SLO {variant.overload}")
    elif not levels and variant.capacity is None:
        yield _Doubt(
            "nothing says that it holds the SLO under load",
            f"run the campaign with {variant.name}, at rates that it holds",
        )
    for level in levels:
        measured = variant.at.get(level)
        if measured is None:
            yield _Doubt(
                f"it was not measured at {level}",
                f"run the campaign with {variant.name} at {level}",
            )
        elif measured.slo is Verdict.FAIL:
            yield _Doubt(f"it misses the SLO at {level}: {measured.reason}")
        elif measured.slo is Verdict.ERROR:
            yield _Doubt(
                f"its run at {level} is invalid: {measured.reason}",
                f"run {level} again, with the load on a machine of its own",
            )
        elif measured.slo is None:
            yield _Doubt(
                f"no SLO says whether {level} is good enough",
                "give the campaign file an `slo` and run it again",
            )
        elif measured.slo is Verdict.INCONCLUSIVE:
            yield _Doubt(
                f"whether it holds the SLO at {level} is open: {measured.reason}",
                f"more blocks, or longer ones, at {level}",
            )


def _by_memory(variant: VariantEvidence, terms: Terms) -> Iterator[_Doubt]:
    memory = variant.memory
    if variant.memory_refusal is not None:
        yield _Doubt(f"it cannot be placed: {variant.memory_refusal}")
        return
    if terms.max_bytes is None and terms.max_gpus is None:
        return
    if memory is None:
        yield _Doubt("its memory is not known", f"give a Serve file that has {variant.name}")
        return
    if terms.max_bytes is not None and memory.compared_bytes > terms.max_bytes:
        need, have = format_bytes(memory.compared_bytes), format_bytes(terms.max_bytes)
        yield _Doubt(f"one replica needs {need}, there are {have}")
    if terms.max_gpus is not None and memory.min_gpus is None:
        yield _Doubt("how many GPUs it needs is not known", "name a GPU type with --gpu")
    elif terms.max_gpus is not None and memory.min_gpus > terms.max_gpus:  # type: ignore[operator]
        yield _Doubt(f"it needs {memory.min_gpus} GPUs, there are {terms.max_gpus}")
