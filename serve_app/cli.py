"""`quantile`: one sub-command per job. Heavy packages are imported by the job that needs them."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.domain.errors import QuantileError

app = typer.Typer(
    name="quantile",
    help="Serve quantized variants of one model behind one endpoint; measure which to ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
    config: Annotated[Path, typer.Argument(help="A Ray Serve config file.")],
) -> None:
    """Check a Serve config file: schema, split, names, and each checkpoint against its method.

    Starts nothing. Example: quantile check configs/local.yaml
    """
    from serve_app.config.serve_file import check_serve_file
    from serve_app.serving.variant_server import inspect_variant

    console = Console(markup=False, highlight=False)
    for args in check_serve_file(config):
        checkpoint = inspect_variant(args)
        console.print(f"{args.name}: {checkpoint.describe()}, {checkpoint.weight_bytes:,} bytes")
    console.print(f"{config} is sound")


def _mount() -> None:
    from loadtests import cli as loads
    from serve_app.calibrate.cli import calibrate
    from serve_app.fleet.cli import plan
    from serve_app.reference.cli import app as reference_app

    app.command()(plan)
    app.command()(calibrate)
    for command in (loads.loadtest, loads.report, loads.compare, loads.load_worker):
        app.command()(command)
    app.add_typer(reference_app, name="reference")


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
