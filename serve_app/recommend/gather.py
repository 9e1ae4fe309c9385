"""All evidence together: evaluation, load runs, Serve file and price list."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from serve_app.advise.contrasts import Contrast, Interval, smaller_is_better, undecided
from serve_app.advise.evidence import (
    COST,
    MEMORY,
    QUALITY,
    Evidence,
    Memory,
    VariantEvidence,
)
from serve_app.config.gpus import load_gpus
from serve_app.domain.errors import ConfigError
from serve_app.recommend.campaigns import Measured, read_runs
from serve_app.recommend.cost import cost_of
from serve_app.recommend.quality import Judged, read_judged
from serve_app.recommend.serve_config import Served, read_served

MEMORY_MARGIN = math.log(1.01)
COST_MARGIN = math.log(1.02)


@dataclass(frozen=True)
class Inputs:
    """Where the evidence is. None: there is none of that kind."""

    runs: tuple[Path, ...]
    quality: Path | None = None
    config: Path | None = None
    assume: Path | None = None
    """A config.json for checkpoints that are not on this machine, as `quantile plan --assume`."""
    gpu: str | None = None
    usd_per_hour: float | None = None
    latency: str = "e2e-p95"
    quality_margin: float | None = None
    """Relative losses of score within it count as none; None: as the evaluation's own bar."""


@dataclass(frozen=True)
class Gathered:
    """The evidence, and the Serve file that a change would be made to."""

    evidence: Evidence
    served: Served | None


def gather(inputs: Inputs) -> Gathered:
    """Read everything. Raises ConfigError or CheckpointError for what cannot be read, and for
    inputs that are of different models or baselines.
    """
    measured = read_runs(inputs.runs, inputs.latency)
    judged = None if inputs.quality is None else read_judged(inputs.quality, inputs.quality_margin)
    served = None
    if inputs.config is not None:
        served = read_served(inputs.config, inputs.gpu, assume=inputs.assume)
    _require_agreement(measured, judged, served)
    names = _names(measured, judged)
    variants = tuple(_variant(name, inputs, measured, judged, served) for name in names)
    by_cost = tuple(_by_cost(variants))
    contrasts = {
        QUALITY: () if judged is None else judged.contrasts,
        **measured.contrasts,
        MEMORY: tuple(_by_memory(variants)),
        COST: by_cost,
    }
    evidence = Evidence(
        model=measured.model,
        baseline=measured.baseline,
        variants=variants,
        levels=measured.levels,
        metric=measured.metric,
        contrasts={axis: pairs for axis, pairs in contrasts.items() if pairs},
        broken=() if judged is None else judged.broken,
        notes=(*_notes(inputs, measured, judged, served), *_cost_notes(by_cost)),
    )
    return Gathered(evidence, served)


def _require_agreement(measured: Measured, judged: Judged | None, served: Served | None) -> None:
    if judged is not None:
        for what, one, other in (
            ("model", judged.model, measured.model),
            ("baseline", judged.baseline, measured.baseline),
        ):
            if one is not None and one != other:
                raise ConfigError(
                    f"the evaluation is of {what} {one!r}, the load runs of {other!r}: give "
                    "evidence of one and the same"
                )
    if served is not None and served.models and measured.model not in served.models:
        have = ", ".join(sorted(served.models))
        raise ConfigError(
            f"{served.path} serves {have}, the load runs are of {measured.model!r}: give its "
            "own Serve file"
        )


def _names(measured: Measured, judged: Judged | None) -> tuple[str, ...]:
    """The baseline, then the others as the campaigns have them, then those only evaluated."""
    others = [*measured.names, *(judged.quality if judged is not None else ())]
    return tuple(dict.fromkeys([measured.baseline, *others]))


def _variant(
    name: str, inputs: Inputs, measured: Measured, judged: Judged | None, served: Served | None
) -> VariantEvidence:
    memory = served.memory.get(name) if served is not None else None
    capacity = measured.capacity.get(name)
    priced = cost_of(
        capacity, memory, measured.replicas.get(name), load_gpus(), inputs.usd_per_hour
    )
    return VariantEvidence(
        name=name,
        quality=judged.quality.get(name) if judged is not None else None,
        gate=served.gates.get(name) if served is not None else None,
        at=measured.at.get(name, {}),
        capacity=capacity,
        overload=measured.overload.get(name),
        memory=memory,
        memory_refusal=served.refused.get(name) if served is not None else None,
        cost_usd_per_million=priced.usd_per_million,
        cost_gap=priced.gap,
    )


def _by_memory(variants: Sequence[VariantEvidence]) -> Iterator[Contrast]:
    """Weights with weights, plans with plans: others do not compare."""
    for one, other in combinations(variants, 2):
        if one.memory is None or other.memory is None or _kind(one.memory) != _kind(other.memory):
            continue
        exact = [float(each.compared_bytes) for each in (one.memory, other.memory)]
        first, second = (Interval(n, n, n) for n in exact)
        yield smaller_is_better(one.name, other.name, first, second, MEMORY_MARGIN)


def _kind(memory: Memory) -> bool:
    return memory.need_bytes is None


def _by_cost(variants: Sequence[VariantEvidence]) -> Iterator[Contrast]:
    for one, other in combinations(variants, 2):
        a, b = costs = one.cost_usd_per_million, other.cost_usd_per_million
        if a is not None and b is not None and a.low is None and b.low is None:
            # both may carry more: that they were offered the same load says nothing of their cost
            reason = "no rate that was tried was too high for either"
            yield undecided(one.name, other.name, COST_MARGIN, reason)
        elif costs != (None, None):
            yield smaller_is_better(one.name, other.name, *costs, COST_MARGIN)


def _cost_notes(by_cost: Sequence[Contrast]) -> Iterator[str]:
    if by_cost and all(each.gain is None for each in by_cost):
        yield (
            "no cost can be told from another, as no rate that was tried was too high: cost is "
            "left out of the front"
        )


def _notes(
    inputs: Inputs, measured: Measured, judged: Judged | None, served: Served | None
) -> Iterator[str]:
    yield from measured.notes
    if judged is None:
        yield "no evaluation was given: no variant but the baseline has a quality"
    else:
        yield from judged.notes
    if served is None:
        yield "no Serve file was given: memory is not known, and no change is made"
    if inputs.gpu is not None and inputs.usd_per_hour is not None:
        yield f"priced at {inputs.usd_per_hour:g} USD per hour, not as {inputs.gpu} is listed"
