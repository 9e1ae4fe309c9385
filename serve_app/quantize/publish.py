"""Make one variant of any checkpoint, judge it in a real engine, and let it appear if it passed.

Work is done in `.<out>.<key>/` beside `out`, whose key covers base, recipe, calibration text and
quantizers: an interrupted run goes on from what it had made, and what was judged wrong stays there
to be looked at. `out` appears by rename, whole and judged, or not at all.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import BuildError, ConfigError
from serve_app.quantize.gate import Candidate, Gate, GateResult
from serve_app.quantize.judging import judge_all
from serve_app.quantize.making import Quantize, Report, Wanted, make_all
from serve_app.quantize.order import Event, Item
from serve_app.quantize.pins import pinned_versions
from serve_app.quantize.recipes import Recipe
from serve_app.quantize.runner import run_job
from serve_app.reference.locate import TWIN_SUFFIX
from serve_app.store.manifest import read_manifest

KEPT = 12
"""Hex digits of the key that the working folder's name shows."""


@dataclass(frozen=True)
class Published:
    """What appeared. `twin`: the dense twin's folder, None where the format itself was judged."""

    folder: Path
    twin: Path | None
    gate: GateResult


def publish(
    recipe: Recipe,
    base: Path,
    out: Path,
    *,
    gate: Gate,
    needs_twin: bool,
    quantize: Quantize | None = None,
    calibration_file: Path | None = None,
    force: bool = False,
    report: Report = lambda variant, state: None,
) -> Published:
    """Make, judge, and let appear. `needs_twin`: no engine here has the format's kernels.

    Raises `ConfigError` if `out` exists and `force` is not given, `BuildError` if the variant
    cannot be made, cannot be loaded, or computes something else than its weights say.
    """
    out = out.absolute()
    twin_out = out.with_name(out.name + TWIN_SUFFIX) if needs_twin else None
    _require_free(out, force)
    key = work_key(recipe, base, calibration_file)
    work = out.with_name(f".{out.name}.{key[:KEPT]}")
    wanted = Wanted(recipe, work / "variant", work / "twin" if needs_twin else None)
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        result = _make_and_judge(
            wanted, base, gate, quantize or _with_calibration(calibration_file), report, force=force
        )
        _require_free(out, force)
        for made, target in ((wanted.twin, twin_out), (wanted.folder, out)):
            if made is not None and target is not None:
                _replace(made, target)
        shutil.rmtree(work)
    return Published(out, twin_out, result)


def _make_and_judge(
    wanted: Wanted, base: Path, gate: Gate, quantize: Quantize, report: Report, *, force: bool
) -> GateResult:
    recipe = wanted.recipe
    if not wanted.is_made or force:
        faults = make_all([wanted], base, quantize, report)
        if faults:
            raise BuildError(f"{recipe.name} could not be made: {faults[recipe.name]}")
    candidate = Candidate(recipe, wanted.folder, wanted.twin)
    results, faults = judge_all({recipe.name: candidate}, gate, report)
    if faults:
        raise BuildError(f"{recipe.name} could not be judged: {faults[recipe.name]}")
    result = results[recipe.name]
    if not result.passed:
        raise BuildError(
            f"{recipe.name} loads but is wrong, and is not published: "
            f"{'; '.join(result.failures)} [{result.describe()}]; look at {wanted.folder}, or "
            "make it anew with --force"
        )
    return result


def work_key(recipe: Recipe, base: Path, calibration_file: Path | None) -> str:
    """SHA-256 (hex) of all that decides the weights, as far as a look at the names tells."""
    calibration = (
        hashlib.sha256(calibration_file.read_bytes()).hexdigest() if calibration_file else None
    )
    key = [recipe.digest(), _identity(base), calibration, pinned_versions()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _identity(base: Path) -> object:
    """The base's manifest if it has one; else its files' names, sizes and times."""
    manifest = read_manifest(base)
    if manifest is not None:
        return manifest.digest()
    stats = [(path.name, path.stat()) for path in sorted(base.iterdir()) if path.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _with_calibration(path: Path | None) -> Quantize:
    def run(base: Path, items: Sequence[Item], hear: Callable[[Event], None]) -> None:
        run_job(base, items, hear, calibration_file=path)

    return run


def _require_free(out: Path, force: bool) -> None:
    """A twin without its variant is what a run left that was cut off between the two renames."""
    if out.exists() and not force:
        raise ConfigError(f"{out} exists: name another --out, or replace it with --force")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One run at a time in a working folder; the kernel releases the lock of one that dies."""
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"another run works in {work}: wait for its end") from None
    finally:
        os.close(handle)


def _replace(made: Path, target: Path) -> None:
    if target.exists():
        old = made.with_name(made.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        made.rename(target)
        shutil.rmtree(old)
    else:
        made.rename(target)
