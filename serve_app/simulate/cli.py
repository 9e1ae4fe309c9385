"""`quantile simulate`: what a precision ladder would do, over curves that were measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from loadtests.campaign.stages import TraceFormat
from serve_app.domain.errors import ConfigError
from serve_app.simulate.inputs import (
    expected_quality,
    ladder_config,
    read_all,
    replica_counts,
)
from serve_app.simulate.measured import write_curves
from serve_app.simulate.picture import draw as draw_picture
from serve_app.simulate.repeated import Answered, Load, repeated_lines, repeated_table
from serve_app.simulate.study import Question, answer, capacity_per_s
from serve_app.simulate.table import outcome_table, verdict_lines
from serve_app.simulate.trace import (
    SHAPES,
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
        list[str], typer.Option(help=f"Without --stage: a burst, {', '.join(SHAPES)}; repeat.")
    ] = ["square"],  # noqa: B006
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
    seeds: Annotated[
        int, typer.Option(min=1, help="So many, from --seed on: medians and ranges are told.")
    ] = 1,
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

        quantile simulate ladder --curves curves.yaml --config ladder.yaml --quality-report q.json
        --shape square --shape ramp --shape two --seeds 5
    """
    known, lengths = read_all(curves), parse_tokens(tokens)
    chosen = ladder_config(config, rungs, ttft_ms, tpot_ms)
    n_replicas = replica_counts(replicas or [])
    expected = expected_quality(quality or [], quality_report)

    def question(load: Load) -> Question:
        if trace:
            arrivals = recorded(trace_format, trace, speedup, seconds)
        elif stage:
            arrivals = draw([parse_stage(text) for text in stage], lengths, load.seed)
        else:
            carried = capacity_per_s(known, chosen, lengths.mean, n_replicas)[chosen.rungs[0]]
            stages = burst(load.shape, carried, overload, calm, burst_s)
            arrivals = draw(stages, lengths, load.seed)
        return Question(
            config=chosen,
            curves=tuple(known),
            quality=expected,
            trace=arrivals,
            replicas=n_replicas,
            shares_device=one_device,
            n_routers=router_replicas,
        )

    console = Console(markup=False, highlight=False, quiet=as_json)
    console.width = max(console.width, _WIDTH)
    shapes = ["stages"] if stage else shape
    loads = [Load(name, seed + n) for name in shapes for n in range(seeds)]
    if len(loads) == 1:
        _one(question(loads[0]), console, out)
    elif trace or out is not None:
        raise ConfigError(
            "several loads are drawn, and told as a table: leave out --trace and --out, or give "
            "one --shape and one seed"
        )
    else:
        _many(loads, question, console, shares_device=one_device)


def _one(asked: Question, console: Console, out: Path | None) -> None:
    found = answer(asked)
    if console.quiet:
        typer.echo(json.dumps(found.as_json(), indent=1))
    console.print(outcome_table(asked, found))
    tokens = mean_tokens(asked.trace)
    carried = capacity_per_s(asked.curves, asked.config, tokens, asked.replicas)
    console.print(*verdict_lines(asked, found, carried), sep="\n")
    if out is not None:
        draw_picture(asked, found, out)
        console.print(f"drawn: {out}")


def _many(
    loads: Sequence[Load],
    ask: Callable[[Load], Question],
    console: Console,
    *,
    shares_device: bool,
) -> None:
    found = [
        Answered(load, answer(ask(load)))
        for load in track(loads, "simulating", console=console, transient=True)
    ]
    if console.quiet:
        typer.echo(json.dumps({"loads": [each.as_json() for each in found]}, indent=1))
    console.print(repeated_table(found))
    console.print(*repeated_lines(found, shares_device=shares_device), sep="\n")


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
