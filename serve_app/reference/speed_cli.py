"""`quantile reference speed`: tokens/s of variants. Mounted by `serve_app.reference.cli`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.domain.errors import ConfigError
from serve_app.quantize.catalogue import recipe, recipes
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.runner import run_job
from serve_app.reference.large import LABEL, ensure_variants
from serve_app.reference.locate import SCHEME, has_twin, links_dir, resolve
from serve_app.reference.speed import BATCHES, Result, Speed, Spread, result_to_json, speeds
from serve_app.reference.speed_run import Contestant, Plan, run_speed

BASELINE = "baseline"
LARGE_DEFAULT = ("rtn", "rtn:bfloat16", "gguf-f16", "gguf-q4-0", "gguf-q4-k-m")
"""How a variant was rounded does not change its speed: of 4-bit weights one is enough. float16 and
bfloat16 run in different kernels. What needs calibration takes minutes at this size."""
TRAINED = "the trained reference model, 2.9 million parameters: mostly Python's time"


def speed(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A variant to measure, beside the baseline; `rtn:bfloat16` runs it in another "
            "dtype than its recipe says. May be repeated."
        ),
    ] = None,
    large: Annotated[
        bool, typer.Option("--large", help="On the larger shape with random weights.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks; a ratio needs several.")] = 3,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Sequences at a time; may be repeated. 1, 8 and 32."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("speed.json"),
) -> None:
    """Measure tokens/s at batch 1, 8 and 32: 64 greedy tokens each, in the variants' own engines.

    Every round measures each variant once, in an order of its own; a variant's ratio to the
    baseline is taken within each round. What fails is named, and the exit code is 1.

    Examples:

        quantile reference speed --only gptq --only gguf-q4-k-m

        quantile reference speed --large --rounds 5
    """
    contestants = _contestants(only, large)
    console = Console(stderr=True)

    def told(name: str, state: str) -> None:
        console.print(f"{name}: {state}", markup=False, highlight=False)

    plan = Plan(rounds=rounds, batches=tuple(sorted(set(batch or BATCHES))), threads=threads)
    result = run_speed(contestants, BASELINE, plan, label=LABEL if large else TRAINED, told=told)
    out.write_text(json.dumps(result_to_json(result), indent=1) + "\n", encoding="utf-8")
    Console().print(speed_table(result, plan.batches))
    typer.echo(f"{result.label}; {describe_machine(result)}; written to {out}")
    for name, why in result.failed.items():
        typer.echo(f"{name} has no figures: {why}", err=True)
    if result.failed:
        raise typer.Exit(1)


def speed_table(result: Result, batches: Sequence[int]) -> Table:
    """One row per variant, and per batch size its tokens/s and its ratio to the baseline."""
    table = Table("variant", "engine", title=f"tokens/s, {result.label}")
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
        table.add_column(f"x {result.baseline}", justify="right")
    found = {(each.variant, each.batch): each for each in speeds(result.samples, result.baseline)}
    for name in dict.fromkeys([*result.facts, *result.failed]):
        engine = result.facts.get(name, {}).get("engine", "-")
        cells = [_cells(found.get((name, batch))) for batch in batches]
        table.add_row(name, engine, *(text for pair in cells for text in pair))
    return table


def describe_machine(result: Result) -> str:
    """`AMD EPYC (avx2 avx512f), 2 cores, 1 thread`."""
    has = result.machine
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    return f"{has['cpu']} ({has['instructions']}), {has['cores']} cores, {threads}"


def _cells(speed: Speed | None) -> tuple[str, str]:
    if speed is None:
        return "-", "-"
    rate, ratio = speed.tokens_per_s, speed.ratio
    return _text(rate, 0 if rate.median >= 100 else 1), _text(ratio, 2) if ratio else "-"


def _text(spread: Spread, digits: int) -> str:
    """`31.2 (29.8-31.9)`; the range only where there is one."""
    text = f"{spread.median:.{digits}f}"
    return f"{text} ({spread.low:.{digits}f}-{spread.high:.{digits}f})" if spread.n > 1 else text


def _contestants(only: Sequence[str] | None, large: bool) -> list[Contestant]:
    """The baseline first. Without `only`: all that is built and runs, or the large shape's."""
    if only:
        names = list(only)
    elif large:
        names = list(LARGE_DEFAULT)
    else:
        names = [name for name in recipes() if _is_built(name) and not has_twin(name)]
    split = {name: name.partition(":") for name in dict.fromkeys([BASELINE, *names])}
    chosen = {variant: recipe(variant) for variant, _, _ in split.values()}
    if large:
        folders = ensure_variants(list(chosen.values()), run_job)
    else:
        _refuse_twins(chosen)
        folders = {variant: resolve(f"{SCHEME}{variant}") for variant in chosen}
    return [
        Contestant(name, folders[variant], chosen[variant].engine.kind, _dtype(chosen[variant], to))
        for name, (variant, _, to) in split.items()
    ]


def _dtype(recipe: Recipe, wanted: str) -> str:
    if wanted not in ("", "float16", "bfloat16"):
        raise ConfigError(f"{recipe.name}:{wanted}: need :float16 or :bfloat16 after the colon")
    return wanted or recipe.engine.dtype


def _is_built(variant: str) -> bool:
    return (links_dir() / variant).is_dir()


def _refuse_twins(variants: Iterable[str]) -> None:
    """A twin is dense: its speed is the baseline's, and would be told as the variant's."""
    if twins := [name for name in variants if has_twin(name)]:
        raise ConfigError(
            f"no engine here runs {', '.join(twins)}: they are judged by dense twins, whose speed "
            "says nothing; leave them out"
        )
