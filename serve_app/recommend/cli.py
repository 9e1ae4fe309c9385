"""`quantile recommend`: which variant to serve, on the evidence that there is."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.advise.candidates import DEFAULT_WEIGHTS, Goal, Terms
from serve_app.advise.evidence import AxisKind, Evidence
from serve_app.advise.recommendation import recommend as decide
from serve_app.domain.errors import CallerError, ConfigError
from serve_app.domain.units import GIB, KIB, MIB
from serve_app.domain.verdict import Verdict
from serve_app.recommend.change import change_of, write_change
from serve_app.recommend.gather import Gathered, Inputs, gather
from serve_app.recommend.report import Report, write_report

EXIT_STATUS = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.ERROR: 3}
_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB}


Runs = Annotated[list[Path], typer.Argument(help="Folders of runs of `quantile loadtest`.")]
QualityFile = Annotated[
    Path | None, typer.Option("--quality", help="quality.json of `quantile eval`.")
]
Config = Annotated[
    Path | None,
    typer.Option(help="The Serve file: memory by its plan, and what the change is made to."),
]
TheGoal = Annotated[Goal, typer.Option(help="What the choice is for.")]
Levels = Annotated[
    list[str] | None,
    typer.Option(help="A load level to hold; repeat. Default: those that gate the campaign."),
]
Bar = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Relative loss of score that is allowed, as 0.01. Default: the bar of the evaluation.",
    ),
]
Latency = Annotated[
    str, typer.Option(help="The latency that decides: e2e|ttft-p50|p95|p99, tpot-p50.")
]
MaxMemory = Annotated[
    str | None, typer.Option("--memory", help="Bytes that one replica may take, as 20GiB.")
]
Gpu = Annotated[
    str | None, typer.Option(help="A GPU type of configs/gpus.yaml to plan and price for.")
]
Gpus = Annotated[int | None, typer.Option(min=1, help="How many of them there are.")]
Price = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Price of what one variant's replicas ran on in the runs; needed without a GPU.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="Of the goal balanced: quality=2,latency=1,memory=1,cost=0.")
]
Assume = Annotated[
    Path | None,
    typer.Option(help="A config.json in place of checkpoints that are not on this machine."),
]
Out = Annotated[Path, typer.Option(help="Folder of the report.")]
Write = Annotated[bool, typer.Option("--write", help="Change the Serve file as recommended.")]
Patched = Annotated[Path | None, typer.Option(help="Write the changed Serve file here.")]


def recommend(
    runs: Runs,
    quality: QualityFile = None,
    config: Config = None,
    goal: TheGoal = Goal.HIGHEST_QUALITY,
    level: Levels = None,
    quality_bar: Bar = None,
    latency: Latency = "e2e-p95",
    memory: MaxMemory = None,
    gpu: Gpu = None,
    gpus: Gpus = None,
    usd_per_hour: Price = None,
    weights: Weights = None,
    assume: Assume = None,
    out: Out = Path("reports/recommendation"),
    write: Write = False,
    patched: Patched = None,
) -> None:
    """Recommend which variant to serve: Pareto front, choice by a goal, change of the Serve file.

    Goals: highest-quality (within the SLO), cheapest (within the quality bar), memory-bound
    (highest quality within --memory or --gpus), balanced. Decided only where the evidence decides.
    Exit status: 0 decided, 1 no variant qualifies, 2 wrong input, 3 inconclusive or broken
    evidence: the report names what to measure next.

    Examples:

    quantile recommend reports/compare --quality reports/eval/quality.json --config
    configs/local.yaml

    quantile recommend reports/compare reports/saturation --quality reports/eval/quality.json
    --config configs/prod.yaml --gpu L4 --gpus 4 --goal cheapest --quality-bar 0.01 --write
    """
    inputs = Inputs(tuple(runs), quality, config, assume, gpu, usd_per_hour, latency, quality_bar)
    _require_sense(config, gpu, gpus, write or patched is not None)
    if usd_per_hour == 0:
        raise ConfigError("--usd-per-hour 0: need a price above 0, or leave it out for none")
    max_bytes = None if memory is None else parse_size(memory)
    if goal is Goal.MEMORY_BOUND and max_bytes is None and gpus is None:
        raise ConfigError("--goal memory-bound needs --memory BYTES, or --gpu TYPE with --gpus N")
    parsed = parse_weights(weights)
    console = Console(markup=False, highlight=False)
    with Console(stderr=True).status("reading the evidence"):
        found = gather(inputs)
    terms = Terms(goal, _levels(found.evidence, level), quality_bar, max_bytes, gpus, parsed)
    report = make_report(found, terms, gpu, gpus, sources_of(inputs))
    _show(console, report, write_report(report, out))
    _apply(console, report, write, patched)
    raise typer.Exit(EXIT_STATUS[report.recommendation.verdict])


def make_report(
    found: Gathered, terms: Terms, gpu: str | None, gpus: int | None, sources: tuple[str, ...]
) -> Report:
    """The recommendation, and the change that follows from it."""
    served = None if found.served is None else found.served.names
    recommendation = decide(found.evidence, terms, served)
    change, why = None, None
    if recommendation.chosen is not None and found.served is not None:
        try:
            change = change_of(found.served, recommendation.variant_set, gpu, gpus)
        except CallerError as error:  # the recommendation holds all the same
            why = str(error)
    return Report(found.evidence, recommendation, change, sources, why)


def sources_of(inputs: Inputs) -> tuple[str, ...]:
    """The files that the evidence is from."""
    named = (*inputs.runs, inputs.quality, inputs.config)
    return tuple(str(path) for path in named if path is not None)


def parse_size(text: str) -> int:
    """`20GiB`, `512MiB` or a number of bytes. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) <= 0:
        raise ConfigError(f"--memory {text}: give bytes, or a number with KiB, MiB or GiB")
    return int(float(found[1]) * unit)


def parse_weights(text: str | None) -> dict[AxisKind, float]:
    """`quality=2,cost=0`; those left out weigh 1. Raises ConfigError."""
    found = dict(DEFAULT_WEIGHTS)
    for item in text.split(",") if text else ():
        name, _, number = item.strip().partition("=")
        try:
            kind, weight = AxisKind(name), float(number)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            known = ", ".join(AxisKind)
            raise ConfigError(f"--weights {item}: write NAME=WEIGHT, 0 or more; names: {known}")
        found[kind] = weight
    if not any(found.values()):
        raise ConfigError("--weights need one above 0")
    return found


def _require_sense(config: Path | None, gpu: str | None, gpus: int | None, writes: bool) -> None:
    if gpus is not None and gpu is None:
        raise ConfigError("--gpus counts the GPUs of one --gpu TYPE: name it")
    if config is None and (writes or gpu is not None):
        raise ConfigError("--gpu, --write and --patched need the Serve file: --config FILE")


def _levels(evidence: Evidence, given: list[str] | None) -> tuple[str, ...]:
    known = [level.name for level in evidence.levels]
    unknown = [name for name in given or () if name not in known]
    if unknown:
        have = ", ".join(known) or "none"
        raise ConfigError(f"no load level {', '.join(unknown)} in the runs; they have {have}")
    gated = [level.name for level in evidence.levels if level.is_gated]
    return tuple(dict.fromkeys(given or gated or known))


def _show(console: Console, report: Report, written: tuple[Path, ...]) -> None:
    from serve_app.recommend.page import answer_of, change_text

    found = report.recommendation
    console.print(f"{answer_of(report)}\n", style="bold")
    for text in found.sentences:
        console.print(text)
    for text in found.remarks:
        console.print(f"to know: {text}")
    for step in found.overall.next_steps:
        console.print(f"measure next: {step}")
    if report.change is not None:
        console.print(change_text(report))
    if report.no_change is not None:
        console.print(f"no change: {report.no_change}")
    console.print(f"report: {', '.join(map(str, written[:3]))}")


def _apply(console: Console, report: Report, write: bool, patched: Path | None) -> None:
    """Raises ConfigError where the file was to be changed and cannot be."""
    change = report.change
    if change is None:
        if (write or patched is not None) and report.no_change is not None:
            raise ConfigError(f"the report is written, the change is not: {report.no_change}")
        if write or patched is not None:
            console.print("nothing is written: nothing is recommended")
        return
    for path in ([change.path] if write else []) + ([patched] if patched is not None else []):
        write_change(change, path)
        console.print(f"{path}: written")
