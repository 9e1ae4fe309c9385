"""`quantile calibrate`: measure what each variant's engine takes on the GPU at hand."""

import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.config.calibration import CALIBRATION
from serve_app.domain.errors import ConfigError


def calibrate(
    config: Annotated[Path, typer.Argument(help="A Ray Serve config file.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="A variant to measure; may be repeated. Default: all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to append to.")] = CALIBRATION,
    gpus: Annotated[
        Path | None, typer.Option(help="The GPU catalogue; default configs/gpus.yaml.")
    ] = None,
) -> None:
    """Boot each variant's engine alone on this machine's GPU and record what it takes.

    The planner uses the numbers in place of its estimates, for the same checkpoint, GPU type and
    vLLM version. Needs an idle GPU and vLLM's GPU build.

    Examples:

        quantile calibrate configs/local-gpu.yaml

        quantile calibrate configs/prod.yaml --variant fp8 --out calibration.yaml
    """
    from serve_app.calibrate.engine_run import run_engine
    from serve_app.calibrate.measure import entry_of, gpus_at_hand, type_of
    from serve_app.config.calibration import append_entry
    from serve_app.config.gpus import load_gpus
    from serve_app.config.serve_file import check_serve_file
    from serve_app.config.sizing import with_planned_sizes
    from serve_app.domain.units import format_bytes
    from serve_app.node.nvml import assigned_gpus
    from serve_app.reference.locate import resolve
    from serve_app.store.inspect import inspect_checkpoint

    catalogue = load_gpus(gpus)
    variants = check_serve_file(config)
    names = [args.name for args in variants]
    if unknown := [name for name in variant or [] if name not in names]:
        raise ConfigError(f"{config} has no variant {unknown[0]!r}; it has: {', '.join(names)}")
    table = Table("variant", "GPU", "weights", "activation", "graphs", "context")
    for args in (args for args in variants if not variant or args.name in variant):
        devices = gpus_at_hand(args.engine.tensor_parallel_size, assigned_gpus)
        gpu = type_of(devices, catalogue)
        folder = resolve(args.checkpoint)
        scheme = inspect_checkpoint(folder, args.checkpoint).describe()
        run = run_engine(folder, with_planned_sizes(args.engine), devices)
        command = f"quantile calibrate {config} --variant {args.name}"
        today = datetime.datetime.now(datetime.UTC).date()
        entry = entry_of(args, scheme, gpu, run, today, command)
        append_entry(out, entry)
        table.add_row(
            args.name,
            gpu,
            format_bytes(entry.weights_bytes),
            format_bytes(entry.activation_bytes),
            format_bytes(entry.cuda_graphs_bytes),
            format_bytes(entry.context_bytes),
        )
    Console().print(table)
    typer.echo(f"appended to {out}")
