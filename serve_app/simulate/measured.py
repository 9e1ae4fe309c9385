"""Service curves from measurements: a load run, `quantile reference speed`, or a file of curves."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from loadtests.analyse.metrics import tpot_ms, ttft_service_ms
from loadtests.analyse.whole import WholeCell
from loadtests.records.record import RequestRecord
from loadtests.report.result import RawRun, read_run
from serve_app.config.parse import parse, read_yaml
from serve_app.config.strict import StrictModel, VariantName
from serve_app.domain.errors import ConfigError
from serve_app.reference.speed import result_from_json
from serve_app.simulate.curves import ServiceCurve, rising

_MS_PER_S = 1000
_LEAST_SAMPLES = 5
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers in flight are rounded to the nearest of these, so that each has samples."""

Positive = Annotated[float, Field(gt=0)]


class CurveEntry(StrictModel):
    """One variant of a file of curves."""

    step_ms: dict[Annotated[int, Field(ge=1)], Positive]
    """Sequences in the batch -> milliseconds of one step."""
    prefill_ms: Annotated[float, Field(ge=0)] = 0.0
    max_batch: Annotated[int, Field(ge=1)]
    source: str = ""


class CurvesFile(StrictModel):
    """Curves, kept: `quantile simulate curves --out`."""

    made_by: str = ""
    """The command, and what it ran on."""
    curves: dict[VariantName, CurveEntry]


def read_curves(path: Path) -> list[ServiceCurve]:
    """The curves of a load run's folder, of a `speed.json`, or of a `*.yaml` of curves.

    Raises ConfigError for anything else, and for a run without enough answers.
    """
    if path.is_dir():
        return curves_of_run(read_run(path))
    if path.suffix == ".json":
        return _from_speed(path)
    file = parse(CurvesFile, read_yaml(path, "curves "), where=str(path))
    return [
        ServiceCurve(
            variant=name,
            steps=tuple((batch, ms / _MS_PER_S) for batch, ms in sorted(entry.step_ms.items())),
            prefill_s=entry.prefill_ms / _MS_PER_S,
            max_batch=entry.max_batch,
            source=entry.source or f"{path.name}: {file.made_by}",
        )
        for name, entry in file.curves.items()
    ]


def write_curves(path: Path, curves: Iterable[ServiceCurve], made_by: str) -> None:
    """Write a file that `read_curves` reads. Raises ConfigError if that cannot be."""
    entries = {
        curve.variant: {
            "max_batch": curve.max_batch,
            "prefill_ms": round(curve.prefill_s * _MS_PER_S, 3),
            "step_ms": {batch: round(s * _MS_PER_S, 3) for batch, s in curve.steps},
            "source": curve.source,
        }
        for curve in curves
    }
    text = yaml.safe_dump({"made_by": made_by, "curves": entries}, sort_keys=False, width=100)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _from_speed(path: Path) -> list[ServiceCurve]:
    """Batches of equal length, prompts included: a step is the wall time over the tokens of one
    sequence, and the prompts' time is spread over the steps."""
    try:
        result = result_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no speed.json of `quantile reference speed`: {error}"
        ) from None
    times: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in result.samples:
        times[sample.variant][sample.batch].append(sample.wall_s * sample.batch / sample.tokens)
    return [
        ServiceCurve(
            variant=variant.replace(":", "-"),
            steps=rising({b: (statistics.median(s), len(s)) for b, s in by_batch.items()}),
            prefill_s=0.0,
            max_batch=max(by_batch),
            source=f"{path.name}: {result.facts[variant].get('engine')}, {result.machine['cpu']}",
        )
        for variant, by_batch in times.items()
    ]


def curves_of_run(run: RawRun) -> list[ServiceCurve]:
    """The curves of every variant of a load run, open and closed loops together.

    The batch of an answer is the mean number in flight while it decoded; a step is the median TPOT
    of answers with the same batch. What prompts take is the TTFT at the smallest batch, less a
    step. Campaigns with stages `kind: concurrency` from 1 to the engine's `max_num_seqs` measure
    this best. Raises ConfigError where a variant has too few answers.
    """
    cells: dict[str, list[WholeCell]] = defaultdict(list)
    for cell in run.whole:
        cells[cell.plan.variant].append(cell)
    if not cells:
        raise ConfigError(f"{run.folder}: no cell of the run is whole; run the campaign again")
    return [_curve(run, name, of_variant) for name, of_variant in cells.items()]


def _curve(run: RawRun, variant: str, cells: Sequence[WholeCell]) -> ServiceCurve:
    facts = run.manifest.variants.get(variant)
    told = facts.facts.get("max_num_seqs") if facts else None
    replicas = (facts.replicas if facts else None) or 1
    most = int(told) if told and told.isdecimal() else None
    tpots: dict[int, list[float]] = defaultdict(list)
    ttfts: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        for record, in_flight in _with_in_flight(cell):
            batch = _nearest(in_flight / replicas)
            tpot, ttft = tpot_ms(record), ttft_service_ms(record)
            if tpot is not None and ttft is not None:
                tpots[min(batch, most or batch)].append(tpot / _MS_PER_S)
                ttfts[batch].append(ttft / _MS_PER_S)
    points = {
        batch: (statistics.median(values), len(values))
        for batch, values in tpots.items()
        if len(values) >= _LEAST_SAMPLES
    }
    if not points:
        raise ConfigError(
            f"{run.folder}: need {_LEAST_SAMPLES} answers of {variant} with known tokens at some "
            f"number in flight, have {sum(map(len, tpots.values()))} in all: let it run longer"
        )
    smallest = min(batch for batch in ttfts if len(ttfts[batch]) >= _LEAST_SAMPLES)
    steps = rising(points)
    engine = facts.facts.get("engine", "engine not told") if facts else "engine not told"
    return ServiceCurve(
        variant=variant,
        steps=steps,
        prefill_s=max(0.0, statistics.median(ttfts[smallest]) - steps[0][1]),
        max_batch=most or max(points),
        source=f"{run.folder.name}: {engine}, {sum(n for _, n in points.values())} answers",
    )


def _with_in_flight(cell: WholeCell) -> Iterable[tuple[RequestRecord, float]]:
    """Each good answer with the mean number of requests in flight between its first and last
    token."""
    spans = [(r.t_send_ns, r.t_end_ns) for r in cell.records]
    known = [(begin, end) for begin, end in spans if begin is not None and end is not None]
    for record in cell.measured:
        first, last = record.t_first_ns, record.t_last_ns
        if record.error is None and first is not None and last is not None and last > first:
            shared = sum(max(0, min(last, end) - max(first, begin)) for begin, end in known)
            yield record, shared / (last - first)


def _nearest(in_flight: float) -> int:
    return min(_BATCHES, key=lambda batch: abs(batch - in_flight))
