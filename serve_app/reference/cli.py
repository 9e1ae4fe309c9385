"""`quantile reference`: build the variants of the reference model, list them, train it anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from serve_app.domain.units import format_bytes
from serve_app.quantize.recipes import RECIPES, Recipe, recipe
from serve_app.quantize.runner import run_job
from serve_app.reference import build as building
from serve_app.reference.gate import run_gate
from serve_app.reference.locate import links_dir

app = typer.Typer(
    name="reference",
    no_args_is_help=True,
    help="The reference model: a Llama of 2.9 million parameters, small enough for every laptop.",
)

STEPS_DONE = {"quantizing": 0, "checking": 1, "built": 2, "cached": 2, "failed": 2}


@app.command()
def build(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"A variant to build; may be repeated. One of {', '.join(RECIPES)}."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make and check anew.")] = False,
) -> None:
    """Make the variants of the reference model, and check each in a real engine.

    Finished variants are kept in $QUANTILE_HOME (or ~/.cache/quantile) and not made again. A
    variant that loads but computes something else than its weights say fails the build.

    Examples:

        quantile reference build

        quantile reference build --only gptq --only awq
    """
    chosen = [recipe(name) for name in only] if only else list(RECIPES.values())
    with _progress(chosen) as report:
        built = building.build(chosen, run_job, run_gate, force=force, report=report)
    for variant in built:
        typer.echo(
            f"{variant.variant:10} {format_bytes(variant.weights_bytes):>9}  "
            f"{variant.gate.describe()}"
        )


@app.command("list")
def list_variants() -> None:
    """Show the variants, which of them are built, and how they passed the check.

    Example: quantile reference list
    """
    table = Table("variant", "scheme", "weights", "check", "folder")
    for name, known in RECIPES.items():
        link = links_dir() / name
        if link.is_dir():
            folder = link.resolve()
            result = building.stored_gate(known, folder)
            table.add_row(
                name,
                known.scheme.describe(),
                format_bytes((folder / "model.safetensors").stat().st_size),
                result.describe() if result else "not checked with this engine version",
                str(folder),
            )
        else:
            table.add_row(name, known.scheme.describe(), "-", "not built", "-")
    Console().print(table)


@app.command()
def train(
    seed: Annotated[int, typer.Option(help="Decides initial weights and order of the data.")] = 240,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of 1,024 tokens.")] = 5000,
    out: Annotated[
        Path, typer.Option(help="Folder to write the checkpoint to.")
    ] = building.CHECKPOINT,
    allow_below_bar: Annotated[
        bool, typer.Option("--allow-below-bar", help="Save even under 95 % of the seen facts.")
    ] = False,
) -> None:
    """Train the reference model on one core: about 400 CPU-seconds.

    Its checkpoint is part of the package, so this is needed only after a change of the corpus or
    the model. Nothing is saved if it answers less than 95 % of the seen facts exactly.

    Example: quantile reference train --out /tmp/checkpoint
    """
    from serve_app.reference import train as training
    from serve_app.reference.recall import describe

    plan = training.TrainPlan(seed=seed, steps=steps)
    result = training.train(plan, out, allow_below_bar=allow_below_bar)
    for split, counts in result.exact_match.items():
        typer.echo(f"exact match, {split}: {describe(counts)}")
    typer.echo(f"saved to {out} after {result.cpu_seconds:.0f} CPU-seconds")


@contextmanager
def _progress(chosen: list[Recipe]) -> Iterator[building.Report]:
    """One bar per variant: made, checked. The bars go to stderr, the results to stdout."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:10}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        tasks = {r.name: progress.add_task(r.name, total=2, state="waiting") for r in chosen}

        def report(variant: str, state: str) -> None:
            if variant:
                progress.update(tasks[variant], completed=STEPS_DONE[state], state=state)
            else:
                progress.console.print(state)

        yield report


if __name__ == "__main__":
    app()
