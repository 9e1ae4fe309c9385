"""`quantile reference large`: the second, larger shape. Mounted by `serve_app.reference.cli`."""

from typing import Annotated

import typer
from rich.console import Console

from serve_app.domain.units import format_bytes
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.runner import run_job
from serve_app.reference.large import LABEL, ensure_large, ensure_variants


def large(
    only: Annotated[
        list[str] | None,
        typer.Option(help="A recipe to make a variant by: name or file *.yaml; may be repeated."),
    ] = None,
) -> None:
    """Make the larger reference shape: 182 million random parameters, for speed and memory only.

    The checkpoint is 365 MB under $QUANTILE_HOME/large and takes seconds; nothing is downloaded.
    Its weights are random: nothing about quality can be read off it. What exists is not made again.

    Examples:

        quantile reference large

        quantile reference large --only rtn --only gguf-q4-k-m
    """
    console = Console(stderr=True)

    def report(what: str, state: str) -> None:
        console.print(f"{what}: {state}", markup=False, highlight=False)

    folders = {"baseline": ensure_large(report=report)}
    if only:
        folders |= ensure_variants([recipe(name) for name in only], run_job, report=report)
    for name, folder in folders.items():
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
        n_bytes = sum(path.stat().st_size for path in weights)
        typer.echo(f"{name:17} {format_bytes(n_bytes):>9}  {folder}")
    typer.echo(LABEL)
