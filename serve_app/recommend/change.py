"""A recommendation as a change of the Serve file: variant set, split, and the planned numbers."""

import difflib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.calibration import calibrations
from serve_app.config.gpus import load_gpus
from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import ConfigError, PlanError
from serve_app.fleet.export import planned_numbers
from serve_app.fleet.layouts import layouts
from serve_app.fleet.plan import FleetPlan, plan_fleet
from serve_app.fleet.summary import misfit
from serve_app.fleet.variant_set import with_variant_set
from serve_app.fleet.write import replace_file, set_planned
from serve_app.planning.fleet import Pool
from serve_app.recommend.serve_config import Served


@dataclass(frozen=True)
class Layout:
    """GPUs that hold the same replicas."""

    gpu: str
    count: int
    replicas: Mapping[str, int]
    used_bp: int


@dataclass(frozen=True)
class Change:
    """The file as it is to be, and how it differs."""

    path: Path
    after: str
    diff: str
    """Unified; empty where the file says it already."""
    packing: tuple[Layout, ...] = ()
    """Of the minimum replicas and those that have room; empty without GPUs."""
    n_gpus: int | None = None
    usd_per_hour: float | None = None
    kept: tuple[str, ...] = ()
    """The variants that the file then serves, the chosen one first."""
    removed: tuple[str, ...] = ()
    """Those that it serves no longer."""
    left_out: tuple[str, ...] = ()
    """Stand-ins for which there was no room."""


def change_of(
    served: Served, variant_set: tuple[str, ...], gpu: str | None, gpus: int | None
) -> Change:
    """The change that serves this set: all traffic to the first, the others stand in for it.

    Stand-ins that do not fit `gpus` are left out, the last first. Raises ConfigError where the
    text cannot be changed so, PlanError where not even the first fits.
    """
    known, kept = served.names, list(variant_set)
    fleet = None
    while kept:
        fleet = _fleet(served, kept, gpu, gpus)
        problem = fleet and misfit(fleet)
        if not problem:
            break
        if len(kept) == 1:
            raise PlanError(problem)
        kept.pop()
    before = _text(served.path)
    split_bp = {name: 10_000 if i == 0 else 0 for i, name in enumerate(kept)}
    after = with_variant_set(before, split_bp, kept)
    if fleet is not None:
        after = set_planned(after, planned_numbers(fleet))
    _rehearse(served.path, after)
    return Change(
        path=served.path,
        after=after,
        diff=_diff(served.path, before, after),
        packing=_layouts(fleet),
        n_gpus=None if fleet is None else fleet.packing.needed_gpus,
        usd_per_hour=None if fleet is None else fleet.packing.price_usd_per_hour,
        kept=tuple(kept),
        removed=tuple(name for name in known if name not in kept),
        left_out=tuple(name for name in variant_set if name not in kept),
    )


def write_change(change: Change, path: Path) -> None:
    """The changed file, whole or not at all. Raises ConfigError if it cannot be written."""
    try:
        if path.exists():
            replace_file(path.resolve(), change.after.encode())
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(change.after, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _fleet(served: Served, names: list[str], gpu: str | None, gpus: int | None) -> FleetPlan | None:
    """The plan of the set; None where its variants run on no GPU."""
    variants = [each for each in served.file.variants if each.args.name in names]
    if not variants or (gpu is None and any(each.args.gpu is None for each in variants)):
        return None
    catalogue = load_gpus()
    pools = {}
    if gpu is not None and gpus is not None:
        pools[gpu] = Pool(gpu, gpus, 1, catalogue[gpu].price_usd_per_hour)
    return plan_fleet(
        variants, catalogue, pools, types=[gpu] if gpu else None, calibrations=calibrations()
    )


def _layouts(fleet: FleetPlan | None) -> tuple[Layout, ...]:
    if fleet is None:
        return ()
    return tuple(
        Layout(each.gpu, each.count, {s.name: s.count for s in each.shares}, each.used_bp)
        for each in layouts(fleet.packing)
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None


def _rehearse(path: Path, text: str) -> None:
    """Raise ConfigError if the changed file would contradict itself."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_text(text, encoding="utf-8")
        try:
            check_serve_file(copy)
        except ConfigError as error:
            reason = str(error).replace(str(copy), str(path))
            raise ConfigError(f"the changed file would not be sound: {reason}") from None


def _diff(path: Path, before: str, after: str) -> str:
    name = str(path).lstrip("/")
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
                   for line in lines)  # fmt: skip
