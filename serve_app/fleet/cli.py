"""`quantile plan`: what the variants of a config file take, where they go, and whether they fit."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.config.calibration import VLLM_VERSION, CalibrationTable, load_calibration
from serve_app.config.gpus import find_gpu, load_gpus
from serve_app.domain.errors import ConfigError, PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.fleet.check import check_written
from serve_app.fleet.export import fleet_json
from serve_app.fleet.picture import draw_fleet
from serve_app.fleet.plan import FleetPlan, plan_fleet
from serve_app.fleet.read import FleetFile, read_fleet
from serve_app.fleet.summary import compare_types, misfit, summary_lines
from serve_app.fleet.table import MIN_WIDTH, fleet_table
from serve_app.fleet.write import write_planned
from serve_app.planning.fleet import Pool
from serve_app.planning.footprint import Calibration, EngineSizes
from serve_app.store.facts_lock import facts_path, save_facts


def plan(
    config: Annotated[Path, typer.Argument(help="A Ray Serve config file.")],
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="A GPU type of configs/gpus.yaml, or TYPE=COUNT; repeat for several. Variants may "
            "go on any of them. Default: the types that the file names."
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="How many GPUs, where one --gpu names the type.")
    ] = None,
    gpus_per_node: Annotated[
        int, typer.Option(min=1, help="GPUs of one node; tensor parallelism stays inside one.")
    ] = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the numbers in the file; for CI.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Put the planned numbers into the file.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the GPUs into this file.")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Read the headers of remote checkpoints again.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also: each GPU type as the only one, with its price.")
    ] = False,
    assume: Annotated[
        Path | None,
        typer.Option(help="A config.json to compute weights from where no checkpoint is at hand."),
    ] = None,
) -> None:
    """Compute each variant's memory from its checkpoint, and pack the replicas on GPUs.

    Starts nothing and reads no weights. Exit code 1 with need, have and the nearest fixes when it
    does not fit. Example: quantile plan configs/prod.yaml --gpu L4 --gpus 4 --png plan.png
    """
    catalogue = load_gpus()
    types, pools = _pools(gpu or [], gpus, gpus_per_node, catalogue)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    with Console(stderr=True).status(f"reading what {config} names"):
        file = read_fleet(config, refresh=refresh, assume=assume)
    for each in file.variants:
        if types is None and each.args.gpu is not None:
            find_gpu(catalogue, each.args.gpu.type)
    if not file.variants:
        raise ConfigError(f"{config} has no variant that runs on vLLM: there is nothing to plan")
    calibrate = partial(_calibrated, load_calibration())
    fleet = plan_fleet(
        file.variants, catalogue, pools, types=types, as_written=check, calibrate=calibrate
    )
    if as_json:
        typer.echo(json.dumps(fleet_json(fleet), indent=1))
    else:
        _print(console, file, fleet)
    if compare:
        console.print("\nthe minimum replicas on one GPU type alone, the cheapest first:")
        on_all = plan_fleet(file.variants, catalogue, {}, types=list(catalogue))
        for line in compare_types(on_all):
            console.print(line)
    if png:
        draw_fleet(fleet, png)
        console.print(f"drawn: {png}", style="dim") if not as_json else None
    problem = misfit(fleet)
    if problem:
        raise PlanError(problem)
    if check:
        for line in check_written(fleet):
            console.print(line)
    if write or refresh:
        _save_facts(console, file)
    if write:
        _write(console, file, fleet)


def _pools(
    given: list[str], count: int | None, per_node: int, catalogue: dict[str, GpuProfile]
) -> tuple[list[str] | None, dict[str, Pool]]:
    """The GPU types to plan for, None for the file's own, and how many there are of which."""
    if count is not None and (len(given) != 1 or "=" in given[0]):
        raise ConfigError("--gpus counts the GPUs of one --gpu TYPE; for several, --gpu TYPE=COUNT")
    types, pools = [], {}
    for item in given:
        name, _, number = item.partition("=")
        profile = find_gpu(catalogue, name)
        if number and not number.isdecimal():
            raise ConfigError(f"--gpu {item}: write TYPE=COUNT, as L4=4")
        types.append(name)
        n_gpus = int(number) if number else count
        if n_gpus is not None:
            pools[name] = Pool(name, n_gpus, per_node, profile.price_usd_per_hour)
    return types or None, pools


def _print(console: Console, file: FleetFile, fleet: FleetPlan) -> None:
    console.print(fleet_table(fleet))
    console.print()
    for line in summary_lines(fleet):
        console.print(line)
    if file.unplanned:
        console.print(f"not planned (fake engines): {', '.join(file.unplanned)}", style="dim")


def _write(console: Console, file: FleetFile, fleet: FleetPlan) -> None:
    planned = {}
    for each in fleet.variants:
        chosen = fleet.chosen(each.name)
        if chosen is not None:
            planned[each.name] = {
                "engine": chosen.engine_settings(),
                "gpu": {"type": chosen.gpu.name, "fraction": chosen.fraction},
            }
    lines = write_planned(file.path, planned)
    console.print(f"{file.path}: {lines} lines changed")


def _save_facts(console: Console, file: FleetFile) -> None:
    if file.facts:
        save_facts(facts_path(file.path), file.facts)
        console.print(f"{facts_path(file.path)}: facts of {len(file.facts)} checkpoints")


def _calibrated(
    table: CalibrationTable, uri: str, gpu: str, sizes: EngineSizes
) -> Calibration | None:
    return table(uri, gpu, VLLM_VERSION, sizes)
