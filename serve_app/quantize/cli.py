"""`quantile quantize` and `quantile gate`: make a variant of a checkpoint, judge one again."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.domain.errors import BuildError, ConfigError
from serve_app.domain.units import format_bytes
from serve_app.quantize.calibration import file_source
from serve_app.quantize.catalogue import recipe, recipes
from serve_app.quantize.recipes import Recipe
from serve_app.store.manifest import read_manifest, verify


class Dtype(StrEnum):
    """What an engine may compute in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def quantize(
    name: Annotated[
        str | None, typer.Argument(help="A shipped recipe, or a file *.yaml; none: list them.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base checkpoint: a folder, or reference://baseline.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder that is to appear.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="JSONL with `text` or `messages`; default the reference corpus."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it anew, replace --out.")] = False,
) -> None:
    """Make a quantized variant of a checkpoint, and publish it if a real engine computes it right.

    The folder holds weights, tokenizer, quantile.json (how it was made, weight error per layer), a
    model card and a manifest of digests. It appears whole and judged, or not at all; a run that
    was cut off goes on from what it had made. See configs/quantize/ for the recipes.

    Examples:

        quantile quantize

        quantile quantize gptq --model /models/llama-3.1-8b --out /models/llama-3.1-8b-gptq

        quantile quantize my.yaml --model /models/base --out /models/mine --calibration chat.jsonl
    """
    if name is None:
        _list_recipes()
        return
    if model is None or out is None:
        raise ConfigError("need --model (the base checkpoint) and --out (the folder to make)")
    _make(recipe(name), model, out, calibration, force=force)


def _make(chosen: Recipe, model: str, out: Path, calibration: Path | None, *, force: bool) -> None:
    from serve_app.quantize.gate import run_gate
    from serve_app.quantize.preflight import check_job
    from serve_app.quantize.progress import progress
    from serve_app.quantize.publish import publish
    from serve_app.quantize.support import runs_here
    from serve_app.reference.locate import resolve

    console = Console(stderr=True, markup=False, highlight=False)
    base = resolve(model)
    if calibration is not None:
        file_source(calibration)  # a wrong line is told before anything starts
    for line in check_job(base, chosen, out):
        console.print(line, soft_wrap=True)
    twin = not runs_here(chosen)
    if twin:
        console.print(f"no engine here runs {chosen.scheme.describe()}: judged as its dense twin")
    with progress([chosen.name]) as report:
        made = publish(
            chosen,
            base,
            out,
            gate=run_gate,
            needs_twin=twin,
            calibration_file=calibration,
            force=force,
            report=report,
        )
    manifest = read_manifest(made.folder)
    total = format_bytes(manifest.total_bytes) if manifest else "-"
    typer.echo(f"{made.folder}  {total}  {made.gate.describe()}")
    if made.twin:
        typer.echo(f"{made.twin}  its dense twin: same answers, {chosen.engine.dtype} bytes")


def gate(
    folder: Annotated[Path, typer.Argument(help="A variant that `quantile quantize` made.")],
    name: Annotated[
        str | None, typer.Option("--recipe", help="Judge by this recipe's limits; default its own.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the activations, as it is to be served.")
    ] = None,
) -> None:
    """Judge a variant here: load it in a real engine, compare with what its weights say.

    On each kind of machine that is to serve it, and after a new engine version or a change of
    limits. The verdict stands in gate.json beside those of other kinds of machines; `quantile store
    push` takes them along. Exits 1 if it computes something else; it is then not served there.

    Examples:

        quantile gate /models/llama-3.1-8b-gptq

        quantile gate /models/llama-3.1-8b-int8 --dtype float16
    """
    from serve_app.quantize.gate import Candidate, GateResult, run_gate
    from serve_app.quantize.judging import keep_result
    from serve_app.quantize.record import recorded_recipe
    from serve_app.quantize.support import runs_here
    from serve_app.reference.locate import TWIN_SUFFIX

    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(f"{folder} has no manifest.json: need a folder of `quantile quantize`")
    verify(folder, manifest)
    chosen = recipe(name) if name else recorded_recipe(folder)
    if dtype is not None:
        engine = chosen.engine.model_copy(update={"dtype": dtype.value})
        chosen = chosen.model_copy(update={"engine": engine})
    twin = None if runs_here(chosen) else folder.with_name(folder.name + TWIN_SUFFIX)
    if twin is not None and not twin.is_dir():
        raise ConfigError(
            f"no engine here runs {chosen.scheme.describe()}, and {twin} is not there: judge it on "
            "a machine that does (serve_app/quantize/SUPPORT.md), or make it anew here"
        )
    candidate = Candidate(chosen, folder, twin)
    results: dict[str, GateResult] = {}
    run_gate({chosen.name: candidate}, results.__setitem__)
    result = results[chosen.name]
    keep_result(candidate, result)
    typer.echo(f"{folder}  {result.describe()}")
    if not result.passed:
        raise BuildError(f"{folder} loads but is wrong: {'; '.join(result.failures)}")


def _list_recipes() -> None:
    table = Table("recipe", "scheme", "format", "what it is")
    for known in recipes().values():
        table.add_row(known.name, known.scheme.describe(), known.scheme.container, known.summary)
    Console().print(table)
