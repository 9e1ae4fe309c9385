"""`quantile simulate`: what a precision ladder would do, over curves that were measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.campaign.stages import TraceFormat
from serve_app.config.ladder import LadderConfig
from serve_app.config.parse import parse, read_yaml
from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import decode_report
from serve_app.simulate.curves import ServiceCurve
from serve_app.simulate.measured import read_curves, write_curves
from serve_app.simulate.picture import draw as draw_picture
from serve_app.simulate.run import Arrival
from serve_app.simulate.study import Question, answer, capacity_per_s
from serve_app.simulate.table import outcome_table, verdict_lines
from serve_app.simulate.trace import (
    SHAPES,
    Tokens,
    burst,
    draw,
    mean_tokens,
    parse_stage,
    parse_tokens,
    recorded,
)

app = typer.Typer(
    name="simulate",
    no_args_is_help=True,
    help="Try a policy on measured curves before it meets traffic.",
)
_WIDTH = 120

Curves = Annotated[
    list[Path],
    typer.Option(
        help="Measured: the folder of a load run, a speed.json of `quantile reference speed`, or "
        "a file of curves. May be repeated; the first that has a variant counts."
    ),
]


@app.command()
def ladder(
    curves: Curves,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with the `ladder` of a Serve file's alias.")
    ] = None,
    rungs: Annotated[
        str | None, typer.Option(help="Without --config: variants, best first: bf16,int8,gptq.")
    ] = None,
    ttft_ms: Annotated[float | None, typer.Option(help="Without --config: P95 of TTFT.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Without --config: P95 of TPOT.")] = None,
    quality: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE; repeat for each rung.")
    ] = None,
    quality_report: Annotated[
        Path | None, typer.Option(help="Instead: the quality.json of `quantile eval`.")
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="RATExSECONDS, or FROM-TOxSECONDS; repeat, in order: 2x30, 2-12x20."),
    ] = None,
    shape: Annotated[
        str, typer.Option(help=f"Without --stage: a burst, {', '.join(SHAPES)}.")
    ] = "square",
    overload: Annotated[
        float, typer.Option(min=0.1, help="Of the burst, in capacities of the best rung.")
    ] = 2.0,
    calm: Annotated[float, typer.Option(min=0.0, help="Before and after it, likewise.")] = 0.5,
    burst_s: Annotated[float, typer.Option(min=1.0, help="Its length in seconds.")] = 60.0,
    trace: Annotated[Path | None, typer.Option(help="Instead: a recorded trace.")] = None,
    trace_format: Annotated[TraceFormat, typer.Option(help="Its format.")] = TraceFormat.AZURE,
    speedup: Annotated[float, typer.Option(min=0.01, help="Play the trace faster.")] = 1.0,
    seconds: Annotated[float | None, typer.Option(help="Of the trace, at most.")] = None,
    tokens: Annotated[str, typer.Option(help="Output tokens: 32, or 16:64 alike.")] = "16:64",
    replicas: Annotated[
        list[str] | None, typer.Option(help="NAME=N of a variant with more than one; repeat.")
    ] = None,
    one_device: Annotated[
        bool, typer.Option("--one-device", help="All engines take turns on one device.")
    ] = False,
    router_replicas: Annotated[
        int, typer.Option(min=1, help="Router replicas; each sees its part of the traffic.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the arrivals and lengths.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Draw it: *.png, *.svg or *.pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Replay a load over measured service curves: ladder, fixed choice, best possible.

    Each variant's engine is simulated step by step (continuous batching), with the router's own
    ladder in front. The same seed gives the same answer.

    Examples:

        quantile simulate ladder --curves reports/curves --rungs bf16,int8,gptq --ttft-ms 500
        --quality bf16=1 --quality int8=0.998 --quality gptq=0.985 --out ladder.png

        quantile simulate ladder --curves speed.json --config ladder.yaml --quality-report
        reports/quality/quality.json --stage 2x30 --stage 2-12x20 --stage 12x60 --stage 2x60

        quantile simulate ladder --curves curves.yaml --config ladder.yaml --quality-report q.json
        --trace AzureLLMInferenceTrace_conv.csv --seconds 600 --router-replicas 2
    """
    known = read_all(curves)
    ladder_config = _config(config, rungs, ttft_ms, tpot_ms)
    lengths, n_replicas = parse_tokens(tokens), _numbers(replicas or [])
    arrivals = (
        recorded(trace_format, trace, speedup, seconds)
        if trace
        else _drawn(
            stage or [], shape, (overload, calm, burst_s), lengths, seed,
            capacity_per_s(known, ladder_config, lengths.mean, n_replicas)[ladder_config.rungs[0]],
        )
    )  # fmt: skip
    question = Question(
        config=ladder_config,
        curves=tuple(known),
        quality=_quality(quality or [], quality_report),
        trace=arrivals,
        replicas=n_replicas,
        shares_device=one_device,
        n_routers=router_replicas,
    )
    found = answer(question)
    console = Console(markup=False, highlight=False, quiet=as_json)
    console.width = max(console.width, _WIDTH)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    console.print(outcome_table(question, found))
    carried = capacity_per_s(known, ladder_config, mean_tokens(arrivals), n_replicas)
    console.print(*verdict_lines(question, found, carried), sep="\n")
    if out is not None:
        draw_picture(question, found, out)
        console.print(f"drawn: {out}")


@app.command()
def curves(
    measured: Annotated[
        list[Path], typer.Argument(help="Folders of load runs, speed.json files, curve files.")
    ],
    out: Annotated[Path, typer.Option(help="The file of curves to write.")] = Path("curves.yaml"),
) -> None:
    """Keep the service curves of measurements in one small file.

    A campaign with stages `kind: concurrency` at 1, 2, 4, ... up to the engine's max_num_seqs
    measures them best: serve_app/simulate/example/campaign.yaml.

    Example: quantile simulate curves reports/curves --out curves.yaml
    """
    known = read_all(measured)
    write_curves(out, known, f"quantile simulate curves {' '.join(map(str, measured))}")
    console = Console(markup=False, highlight=False)
    for curve in known:
        steps = ", ".join(f"{batch}: {1000 * s:.1f}" for batch, s in curve.steps)
        told = f"step ms by batch {{{steps}}}, prefill {1000 * curve.prefill_s:.1f} ms"
        line = f"{curve.variant}: {told}, at most {curve.max_batch}; {curve.source}"
        console.print(line, soft_wrap=True)
    console.print(f"written: {out}")


def read_all(paths: Sequence[Path]) -> list[ServiceCurve]:
    """The curves of several measurements; of a variant that two have, the first."""
    found: dict[str, ServiceCurve] = {}
    for path in paths:
        for curve in read_curves(path):
            found.setdefault(curve.variant, curve)
    return list(found.values())


def _config(
    path: Path | None, rungs: str | None, ttft_ms: float | None, tpot_ms: float | None
) -> LadderConfig:
    if (path is None) == (rungs is None):
        raise ConfigError("give the ladder by --config FILE, or by --rungs and an SLO")
    if path is not None:
        if ttft_ms is not None or tpot_ms is not None:
            raise ConfigError(f"{path} has the SLO: leave out --ttft-ms and --tpot-ms")
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} needs the keys of a ladder, as `rungs: [bf16, int8]`")
        return parse(LadderConfig, raw.get("ladder", raw), where=str(path))
    values = {
        "rungs": [name.strip() for name in (rungs or "").split(",")],
        "ttft_p95_ms": ttft_ms,
        "tpot_p95_ms": tpot_ms,
    }
    return parse(LadderConfig, values, where="--rungs")


def _drawn(
    stages: Sequence[str],
    shape: str,
    size: tuple[float, float, float],
    lengths: Tokens,
    seed: int,
    capacity: float,
) -> tuple[Arrival, ...]:
    if stages:
        return draw([parse_stage(text) for text in stages], lengths, seed)
    return draw(burst(shape, capacity, *size), lengths, seed)


def _numbers(texts: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdecimal() or not int(number):
            raise ConfigError(f"--replicas {text}: write NAME=N, as gptq=2")
        found[name] = int(number)
    return found


def _quality(texts: Sequence[str], report: Path | None) -> dict[str, float]:
    if bool(texts) == (report is not None):
        raise ConfigError("give the quality by --quality NAME=VALUE, or by --quality-report FILE")
    if report is not None:
        try:
            decoded = decode_report(report.read_bytes(), str(report))
        except OSError as error:
            raise ConfigError(f"cannot read {report}: {error.strerror}") from None
        return {each.name: each.score.value for each in decoded.variants if each.score is not None}
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--quality {text}: write NAME=VALUE, as int8=0.998") from None
    return found
