"""`quantile check MODEL --method ...`: what stands against making or serving a variant of it."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from serve_app.config.gpus import load_gpus
from serve_app.domain.errors import ConfigError
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.node.host import HostMemory
from serve_app.quantize.catalogue import recipe as find_recipe
from serve_app.quantize.files import bytes_to_hash, check_files
from serve_app.quantize.findings import Finding
from serve_app.quantize.memory import job_bound
from serve_app.quantize.preflight import (
    Target,
    check_making,
    check_memory,
    check_serving,
    job_facts,
    this_target,
)
from serve_app.quantize.recipes import LlmCompressor, Recipe
from serve_app.quantize.support import Format
from serve_app.quantize.support_rules import Stored
from serve_app.store.inspect import CheckpointContents
from serve_app.store.manifest import Advance
from serve_app.store.source import Source, open_source

RECIPES = {
    QuantMethod.UNQUANTIZED: "baseline",
    QuantMethod.INT8_W8A8: "int8",
    QuantMethod.GPTQ: "gptq",
    QuantMethod.AWQ: "awq",
    QuantMethod.RTN: "rtn",
    QuantMethod.FP8: "fp8-dynamic",
    QuantMethod.GGUF: "gguf-q4-k-m",
    QuantMethod.SQUEEZELLM: "squeezellm-w4",
    QuantMethod.MIXED: "mixed",
}
"""The recipe that a method means where none is named."""
EXIT_FOUND = 2


def check_model(
    model: str,
    method: QuantMethod | None = None,
    *,
    group_size: int | None = None,
    gpu: str | None = None,
    recipe: str | None = None,
    dtype: str | None = None,
    tensor_parallel: int = 1,
) -> None:
    """Print every finding about the checkpoint `model`, a place that `open_source` takes.

    A plain checkpoint is checked as the base of the method's recipe, a quantized one as what is to
    be served. Raises `typer.Exit` with 2 if there is an error among the findings; ConfigError,
    CheckpointError for arguments that lead nowhere.
    """
    chosen = chosen_recipe(method, recipe, group_size)
    target = chosen_target(chosen, gpu, dtype, tensor_parallel)
    source = open_source(model)
    with _hashing(source) as advance:
        files = check_files(source, hash_files=True, advance=advance)
    found = list(files.findings)
    console = Console(markup=False, highlight=False)
    contents = files.contents
    if contents is not None:
        checkpoint = contents.checkpoint
        console.print(f"{model}: {checkpoint.describe()}, {checkpoint.weight_bytes:,} bytes")
        found += _findings(contents, chosen, target)
        if checkpoint.scheme.method is QuantMethod.UNQUANTIZED:
            bound = job_bound(job_facts(contents), chosen)
            console.print(f"making {chosen.name} takes {bound.describe()}", soft_wrap=True)
    for each in found:
        console.print(each.describe(), soft_wrap=True)
    n_errors = sum(each.severity == "error" for each in found)
    if n_errors:
        console.print(f"{n_errors} error(s), {len(found) - n_errors} warning(s)")
        raise typer.Exit(EXIT_FOUND)
    console.print(f"nothing stands against it ({len(found)} warning(s))")


def chosen_recipe(method: QuantMethod | None, name: str | None, group_size: int | None) -> Recipe:
    """The named recipe, or the method's own, with another group size if one is given.

    Raises ConfigError where they do not go together.
    """
    if name is None and method is None:
        raise ConfigError(f"need --method (one of {', '.join(QuantMethod)}) or --recipe NAME")
    chosen = find_recipe(name or RECIPES[method or QuantMethod.UNQUANTIZED])
    if method is not None and chosen.method is not method:
        raise ConfigError(
            f"--recipe {chosen.name} is of method {chosen.method}, not {method}: leave one out"
        )
    return chosen if group_size is None else _regrouped(chosen, group_size)


def chosen_target(
    recipe: Recipe, gpu: str | None, dtype: str | None, tensor_parallel: int = 1
) -> Target:
    """This machine, or the GPU type of configs/gpus.yaml. Raises ConfigError for an unknown one."""
    if tensor_parallel < 1:
        raise ConfigError(f"--tensor-parallel is a number of GPUs, at least 1: {tensor_parallel}")
    if gpu is None:
        target = this_target(recipe)
    else:
        gpus = load_gpus()
        if gpu not in gpus:
            raise ConfigError(f"unknown GPU {gpu!r}: need one of {', '.join(gpus)}")
        target = Target(gpus[gpu], recipe.engine.kind, recipe.engine.dtype, named=True)
    return dataclasses.replace(target, dtype=dtype or target.dtype, tensor_parallel=tensor_parallel)


def format_found(scheme: QuantScheme, config: Mapping[str, Any]) -> Format:
    """What a quantized checkpoint's `config.json` says beyond its scheme."""
    declared = config.get("quantization_config") or {}
    groups = list((declared.get("config_groups") or {}).values()) or [{}]
    cached = declared.get("kv_cache_scheme") is not None
    native_order = bool(declared.get("desc_act")) and scheme.group_size is not None
    parts = []
    for group in groups:
        weights = group.get("weights") or {}
        activations = group.get("input_activations") or {}
        floating = scheme.method is QuantMethod.FP8 or weights.get("type") == "float"
        parts.append(
            Stored(
                _part_scheme(scheme, weights, activations, floating),
                per=weights.get("strategy") or ("group" if scheme.group_size else "channel"),
                floating=floating,
                floating_activations=activations.get("type") == "float",
                static=bool(activations) and not activations.get("dynamic", False),
                symmetric_activations=bool(activations.get("symmetric", True)),
                group_order=native_order or weights.get("actorder") in ("group", True),
            )
        )
    return Format(tuple(parts), fp8_cache=cached)


def _part_scheme(
    whole: QuantScheme, weights: Mapping[str, Any], activations: Mapping[str, Any], floating: bool
) -> QuantScheme:
    if whole.method is not QuantMethod.MIXED or not weights:
        return whole
    bits, activation_bits = int(weights["num_bits"]), int(activations.get("num_bits", 16))
    symmetric = bool(weights.get("symmetric", True))
    method = QuantMethod.GPTQ if symmetric else QuantMethod.AWQ
    if floating:
        method = QuantMethod.FP8
    elif bits == activation_bits == 8:
        method = QuantMethod.INT8_W8A8
    return dataclasses.replace(
        whole,
        method=method,
        bits=bits,
        activation_bits=activation_bits,
        group_size=weights.get("group_size"),
        symmetric=symmetric,
    )


def _findings(contents: CheckpointContents, recipe: Recipe, target: Target) -> Iterator[Finding]:
    scheme = contents.checkpoint.scheme
    if scheme.method is QuantMethod.UNQUANTIZED and contents.checkpoint.twin_of is None:
        yield from check_making(contents, recipe, target)
        yield from check_memory(contents, recipe, HostMemory().free_bytes())
    elif scheme.method is QuantMethod.UNQUANTIZED:
        yield from check_making(contents, recipe, target)
    else:
        stored = format_found(scheme, contents.config)
        yield from check_serving(contents, stored, recipe.method, target)


def _regrouped(recipe: Recipe, group_size: int) -> Recipe:
    made = recipe.make
    grouped = isinstance(made, LlmCompressor) and any(
        rule.weights.per == "group" for rule in made.layers
    )
    if group_size < 1:
        raise ConfigError(f"--group-size is a number of input channels, at least 1: {group_size}")
    if not isinstance(made, LlmCompressor) or not grouped:
        raise ConfigError(
            f"{recipe.name} has no groups: leave --group-size out, or take --method gptq, awq, rtn"
        )
    layers = tuple(
        rule.model_copy(
            update={"weights": rule.weights.model_copy(update={"group_size": group_size})}
        )
        if rule.weights.per == "group"
        else rule
        for rule in made.layers
    )
    return recipe.model_copy(update={"make": made.model_copy(update={"layers": layers})})


@contextmanager
def _hashing(source: Source) -> Iterator[Advance]:
    """A bar on stderr while the files of a checkpoint with a manifest are hashed."""
    total = bytes_to_hash(source)
    if total is None:
        yield lambda n_bytes: None
        return
    columns = TextColumn("checking digests"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda n_bytes: bar.advance(task, n_bytes)
