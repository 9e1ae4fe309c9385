"""`quantile reference`: build the variants of the reference model, list them, train it anew."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.domain.units import format_bytes
from serve_app.quantize.catalogue import DEMO, recipe, recipes
from serve_app.quantize.gate import Candidate, run_gate
from serve_app.quantize.judging import stored_result
from serve_app.quantize.progress import progress
from serve_app.quantize.runner import run_job
from serve_app.quantize.support import runs_here
from serve_app.reference import build as building
from serve_app.reference.large_cli import large
from serve_app.reference.locate import TWIN_SUFFIX, links_dir
from serve_app.reference.speed_cli import speed

app = typer.Typer(
    name="reference",
    no_args_is_help=True,
    help="The reference model: a Llama of 2.9 million parameters, small enough for every laptop.",
)


app.command()(large)
app.command()(speed)


@app.command()
def build(
    only: Annotated[
        list[str] | None,
        typer.Option(help="A recipe to build: a name or a file *.yaml; may be repeated."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every shipped recipe, not only the demo's four.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Make and check anew.")] = False,
) -> None:
    """Make the variants of the reference model, and check each in a real engine.

    Finished variants are kept in $QUANTILE_HOME (or ~/.cache/quantile) and not made again. A
    variant that loads but computes something else than its weights say fails the build. What no
    engine on this machine runs is checked as its dequantized twin, `reference://<name>-twin`.

    Examples:

        quantile reference build

        quantile reference build --only gptq --only gguf-q4-k-m

        quantile reference build --all
    """
    names = only or (list(recipes()) if everything else list(DEMO))
    chosen = [recipe(name) for name in names]
    with progress([each.name for each in chosen]) as report:
        built = building.build(
            chosen,
            run_job,
            run_gate,
            force=force,
            needs_twin=lambda each: not runs_here(each),
            report=report,
        )
    for variant in built:
        typer.echo(
            f"{variant.variant:17} {format_bytes(variant.weights_bytes):>9}  "
            f"{variant.gate.describe()}{' (twin)' if variant.twin else ''}"
        )


@app.command("list")
def list_variants() -> None:
    """Show the variants, which of them are built, and how they passed the check.

    Example: quantile reference list
    """
    table = Table("variant", "scheme", "weights", "check", "folder")
    for name, known in recipes().items():
        link = links_dir() / name
        if link.is_dir():
            folder = link.resolve()
            twin = links_dir() / (name + TWIN_SUFFIX)
            result = stored_result(Candidate(known, folder, twin if twin.is_dir() else None))
            table.add_row(
                name,
                known.scheme.describe(),
                format_bytes(building.weights_bytes(folder)),
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


if __name__ == "__main__":
    app()
