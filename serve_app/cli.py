"""`quantile`: one sub-command per job. Heavy packages are imported by the job that needs them."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.domain.errors import QuantileError
from serve_app.domain.quant import QuantMethod

app = typer.Typer(
    name="quantile",
    help="Serve quantized variants of one model behind one endpoint; measure which to ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


bench = typer.Typer(help="Measure what QuanTile itself costs.", no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Keeps `overhead` a command of its own, though it is the only one."""


@app.command()
def demo(
    config: Annotated[Path, typer.Option(help="The Serve config to run.")] = Path(
        "configs/local.yaml"
    ),
    campaign: Annotated[Path, typer.Option(help="The load campaign to run.")] = Path(
        "configs/campaigns/smoke.yaml"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default reports/demo-<time>.")
    ] = None,
) -> None:
    """Build the reference family, serve it, ask it, load it, and print one table.

    Example: quantile demo --campaign configs/campaigns/smoke.yaml
    """
    from serve_app.demo import run_demo

    run_demo(config, campaign, out)


@app.command()
def check(
    what: Annotated[
        str,
        typer.Argument(help="A Serve config *.yaml; or a checkpoint: folder, s3://, hf://, ..."),
    ],
    method: Annotated[
        QuantMethod | None, typer.Option(help="Checkpoint: what it is, or is to become.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(help="Checkpoint: channels per scale.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Checkpoint: a type of configs/gpus.yaml.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Checkpoint: a recipe to make a variant by.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Checkpoint: the engine's dtype.")] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Checkpoint: GPUs per replica.")] = 1,
) -> None:
    """Check a Serve config file, or whether a checkpoint can be quantized or served as wished.

    A config: schema, split, names, each checkpoint against its method. A checkpoint: format,
    shards, digests, dimensions, tokenizer, GPU, memory; every finding with what to do. Starts
    nothing.

    Examples:

        quantile check configs/local.yaml

        quantile check /models/llama-3.1-8b --recipe gptq --gpu L4
    """
    if not what.endswith((".yaml", ".yml")):
        from serve_app.quantize.check_cli import check_model

        check_model(
            what,
            method,
            group_size=group_size,
            gpu=gpu,
            recipe=recipe,
            dtype=dtype,
            tensor_parallel=tensor_parallel,
        )
        return
    from serve_app.config.serve_file import check_serve_file
    from serve_app.serving.variant_server import inspect_variant

    console = Console(markup=False, highlight=False)
    for args in check_serve_file(Path(what)):
        checkpoint = inspect_variant(args)
        n_bytes = checkpoint.told_bytes
        told = "bytes not known" if n_bytes is None else f"{n_bytes:,} bytes"
        console.print(f"{args.name}: {checkpoint.describe()}, {told}")
    console.print(f"{what} is sound")


def _mount() -> None:
    from loadtests import cli as loads
    from loadtests.relay_bench.overhead import overhead
    from serve_app.calibrate.cli import calibrate
    from serve_app.doctor.cli import doctor
    from serve_app.evaluate.cli import evaluate
    from serve_app.family.cli import family
    from serve_app.fleet.cli import plan
    from serve_app.pipeline.cli import pipeline
    from serve_app.quantize.cli import gate, quantize
    from serve_app.recommend.cli import recommend
    from serve_app.reference.cli import app as reference_app
    from serve_app.rollouts.cli import rollout
    from serve_app.simulate.cli import app as simulate_app
    from serve_app.status_cli import status
    from serve_app.store.cli import app as store_app
    from serve_app.tenants_cli import keys

    commands: tuple[Callable[..., None], ...] = (
        *(doctor, status, plan, calibrate, quantize, gate, recommend, pipeline, family, rollout),
        *(loads.loadtest, loads.report, loads.compare, loads.load_worker),
    )
    for command in commands:
        app.command()(command)
    app.command("eval")(evaluate)
    app.add_typer(reference_app, name="reference")
    app.add_typer(keys, name="keys")
    app.add_typer(store_app, name="store")
    app.add_typer(simulate_app, name="simulate")
    bench.command()(overhead)
    app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the console script: errors of ours are one line, not a traceback."""
    _mount()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # end what we started, as Ctrl-C does
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as under nohup
            signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except QuantileError as error:
        # No markup: messages quote what users wrote, square brackets included.
        console = Console(stderr=True, markup=False, highlight=False)
        console.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
