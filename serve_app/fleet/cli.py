"""`quantile plan`: what the variants of a config file take, where they go, and whether they fit."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.config.calibration import calibrations
from serve_app.config.gpus import find_gpu, load_gpus
from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import ConfigError, PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.fleet.check import check_written
from serve_app.fleet.export import fleet_json, planned_numbers
from serve_app.fleet.picture import draw_fleet
from serve_app.fleet.plan import FleetPlan, plan_fleet
from serve_app.fleet.read import FleetFile, read_fleet
from serve_app.fleet.summary import compare_types, misfit, summary_lines
from serve_app.fleet.table import MIN_WIDTH, fleet_table
from serve_app.fleet.write import Planned, write_planned
from serve_app.planning.fleet import Pool
from serve_app.store.facts_lock import facts_path, save_facts

Config = Annotated[Path, typer.Argument(help="A Ray Serve config file.")]
Gpu = Annotated[
    list[str] | None,
    typer.Option(
        help="A GPU type of configs/gpus.yaml, or TYPE=COUNT; repeat for several. Variants may go "
        "on any of them. Default: the types that the file names."
    ),
]
Gpus = Annotated[
    int | None, typer.Option(min=1, help="How many GPUs, where one --gpu names the type.")
]
GpusPerNode = Annotated[
    int, typer.Option(min=1, help="GPUs of one node; tensor parallelism stays inside one.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Check the numbers as the file has them; for CI.")
]
Write = Annotated[bool, typer.Option("--write", help="Put the planned numbers into the file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")]
Png = Annotated[Path | None, typer.Option(help="Draw the GPUs into this file.")]
Refresh = Annotated[
    bool, typer.Option("--refresh", help="Read the headers of remote checkpoints again.")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also: each GPU type as the only one, with its price.")
]
Assume = Annotated[
    Path | None,
    typer.Option(
        help="A config.json in place of checkpoints that are not on this machine: weights are "
        "computed from its shape and the declared method."
    ),
]


def plan(
    config: Config,
    gpu: Gpu = None,
    gpus: Gpus = None,
    gpus_per_node: GpusPerNode = 1,
    check: Check = False,
    write: Write = False,
    as_json: Json = False,
    png: Png = None,
    refresh: Refresh = False,
    compare: Compare = False,
    assume: Assume = None,
) -> None:
    """Compute each variant's memory from its checkpoint, and pack the replicas on GPUs.

    Starts nothing and reads no weights. Exit code 1 with need, have and the nearest fixes when it
    does not fit. Example: quantile plan configs/prod.yaml --gpu L4 --gpus 4 --png plan.png
    """
    if check and (write or gpu):
        raise ConfigError("--check takes the file as it is: leave out --write and --gpu")
    catalogue = load_gpus()
    types, pools = _pools(gpu or [], gpus, gpus_per_node, catalogue)
    console = Console(markup=False, highlight=False, quiet=as_json)
    console.width = max(console.width, MIN_WIDTH)
    with Console(stderr=True).status(f"reading what {config} names"):
        file = read_fleet(config, as_written=check, refresh=refresh, assume=assume)
    if not file.variants:
        raise ConfigError(f"{config} has no variant that runs on vLLM: there is nothing to plan")
    fleet = plan_fleet(
        file.variants,
        catalogue,
        pools,
        types=types,
        as_written=check,
        calibrations=calibrations(),
    )
    if as_json:
        typer.echo(json.dumps(fleet_json(fleet), indent=1))
    _print(console, file, fleet)
    if compare:
        _compare(console, file, fleet)
    if png:
        draw_fleet(fleet, png)
        console.print(f"drawn: {png}")
    problem = misfit(fleet)
    if problem:
        raise PlanError(problem)
    if check:
        console.print(*check_written(fleet), sep="\n")
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
        name, equals, number = item.partition("=")
        profile = find_gpu(catalogue, name)
        if equals and not number.isdecimal():
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


def _compare(console: Console, file: FleetFile, fleet: FleetPlan) -> None:
    console.print("\nthe minimum replicas on one GPU type alone, the cheapest first:")
    on_each = plan_fleet(
        file.variants, fleet.gpus, {}, types=list(fleet.gpus), calibrations=fleet.calibrations
    )
    console.print(*compare_types(on_each), sep="\n")


def _write(console: Console, file: FleetFile, fleet: FleetPlan) -> None:
    planned = planned_numbers(fleet)
    _rehearse(file.path, planned)
    changed = write_planned(file.path, planned)
    console.print(f"{file.path}: {'written' if changed else 'has these numbers already'}")


def _rehearse(path: Path, planned: Mapping[str, Planned]) -> None:
    """Raise ConfigError if the file would contradict itself with these numbers in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(path.read_bytes())
        write_planned(copy, planned)
        try:
            check_serve_file(copy)
        except ConfigError as error:
            reason = str(error).replace(str(copy), str(path))
            raise ConfigError(f"not written, the file would not be sound: {reason}") from None


def _save_facts(console: Console, file: FleetFile) -> None:
    if file.facts:
        save_facts(facts_path(file.path), file.facts)
        console.print(f"{facts_path(file.path)}: facts of {len(file.facts)} checkpoints")
