"""Build the variants of a checkpoint into a content-addressed cache.

    <cache>/models/<variant>-<digest12>/       weights, quantile.json, reference.npz, gate.json
    <cache>/models/<variant>-<digest12>-twin/  its dequantized twin, where no engine here runs it
    <cache>/reference/<variant>[-twin]         link to the folder that passed the gate

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.gate import Candidate, Gate, GateResult
from serve_app.quantize.judging import judge_all
from serve_app.quantize.making import UNFINISHED, Quantize, Report, Wanted, make_all
from serve_app.quantize.pins import pinned_versions
from serve_app.quantize.recipes import Recipe
from serve_app.reference.corpus import corpus_digest
from serve_app.reference.locate import TWIN_SUFFIX, cache_dir, links_dir
from serve_app.store.manifest import read_manifest

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The trained reference model, part of the package."""

_PACKAGE = Path(__file__).parents[1]
JOB_CODE = (
    "quantize/job.py",
    "engines/gguf_order.py",
    "engines/vllm_squeezellm_weights.py",
    "quantize/calibration.py",
    "quantize/gguf_*.py",
    "quantize/kmeans.py",
    "quantize/layouts/*.py",
    "quantize/make_*.py",
    "quantize/record.py",
    "quantize/reference_pass.py",
    "quantize/sensitivity.py",
    "quantize/twin.py",
    "quantize/weight_error.py",
    "reference/corpus.py",
    "reference/logprobs.py",
)
"""What the bytes of a variant and of its reference come from: part of the cache's key."""
_BASE_FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Built:
    """One variant in the cache that passed its gate.

    `weights_bytes`: size of its weights' files, not of its twin's. `twin`: the folder of the dense
    twin that stands in for it here, None where an engine runs the format itself.
    """

    variant: str
    folder: Path
    weights_bytes: int
    gate: GateResult
    twin: Path | None = None


def build(
    recipes: Sequence[Recipe],
    quantize: Quantize,
    gate: Gate,
    *,
    base: Path = CHECKPOINT,
    force: bool = False,
    needs_twin: Callable[[Recipe], bool] = lambda recipe: False,
    report: Report = lambda variant, state: None,
) -> list[Built]:
    """Make what is missing, gate what is not gated, and link what passed.

    `force` makes and gates everything anew. Raises `BuildError` when a variant cannot be made, or
    differs from its reference by more than its recipe tolerates; the others are linked before.
    """
    base_digest = _files_digest(base)
    with _lock(report):
        models = cache_dir() / "models"
        models.mkdir(parents=True, exist_ok=True)
        for leftover in models.glob(UNFINISHED + "*"):
            shutil.rmtree(leftover)
        wanted = {r.name: _wanted(r, models, base_digest, needs_twin(r)) for r in recipes}
        faults = make_all(
            [each for each in wanted.values() if force or not each.is_made], base, quantize, report
        )
        made = {name: each for name, each in wanted.items() if each.is_made and name not in faults}
        candidates = {
            name: Candidate(each.recipe, each.folder, each.twin) for name, each in made.items()
        }
        results, unjudged = judge_all(candidates, gate, report)
        for name, result in results.items():
            _link(name, wanted[name].folder, result.passed)
            if twin := wanted[name].twin:
                _link(name + TWIN_SUFFIX, twin, result.passed)
            else:  # an engine runs it now: an older twin must not stand in for it
                (links_dir() / (name + TWIN_SUFFIX)).unlink(missing_ok=True)
    _raise_failures(results, wanted, faults | unjudged)
    folders = {name: wanted[name] for name in results}
    return [
        Built(name, each.folder, weights_bytes(each.folder), results[name], each.twin)
        for name, each in folders.items()
    ]


def variant_digest(base_digest: str, recipe: Recipe) -> str:
    """Twelve hex digits that change with anything that decides the weights."""
    key = [base_digest, recipe.digest(), corpus_digest(), pinned_versions(), _job_digest()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def weights_bytes(folder: Path) -> int:
    """Bytes of the weights' files, as the manifest lists them. Raises `CheckpointError`."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(f"{folder} has no manifest.json: build it with --force")
    return sum(
        entry.bytes
        for name, entry in manifest.files.items()
        if name.endswith((".safetensors", ".gguf"))
    )


def _wanted(recipe: Recipe, models: Path, base_digest: str, needs_twin: bool) -> Wanted:
    folder = models / f"{recipe.name}-{variant_digest(base_digest, recipe)}"
    twin = folder.with_name(folder.name + TWIN_SUFFIX) if needs_twin else None
    return Wanted(recipe, folder, twin)


def _job_digest() -> str:
    """The code that makes a variant and its reference: a mended fault must not leave old ones."""
    paths = {path for pattern in JOB_CODE for path in _PACKAGE.glob(pattern)}
    code = b"".join(path.read_bytes() for path in sorted(paths))
    return hashlib.sha256(code).hexdigest()


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
    results: Mapping[str, GateResult], wanted: Mapping[str, Wanted], faults: Mapping[str, str]
) -> None:
    failed = {name: result for name, result in results.items() if not result.passed}
    lines = [
        f"{name}: {'; '.join(result.failures)} [{result.describe()}; {wanted[name].folder}]"
        for name, result in failed.items()
    ]
    if faults:
        raise BuildError(
            "not every variant could be made and checked; the others are linked:\n  "
            + "\n  ".join([*(f"{name}: {why}" for name, why in faults.items()), *lines])
        )
    if failed:
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


def _files_digest(base: Path) -> str:
    digest = hashlib.sha256()
    for name in _BASE_FILES:
        try:
            content = (base / name).read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{base} is not a whole checkpoint: need {name}") from error
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
