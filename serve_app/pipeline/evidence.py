"""A run's folder: one at a time in it, a folder per stage, and whether evidence is as it was."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.domain.errors import CheckpointError, ConfigError
from serve_app.pipeline.findings import MadeVariant
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.state import StageRecord
from serve_app.store.manifest import file_sha256, read_manifest

LOCK = ".lock"
SUPERSEDED = "superseded"
_CHANGES = (".log",)
"""Endings of files that are kept but are no evidence."""


@contextmanager
def sole_use(out: Path) -> Iterator[None]:
    """One pipeline per folder; the kernel releases the lock of a process that dies.

    Raises ConfigError if the folder is in use, or cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"--out: need a folder that can be written to: {error}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another pipeline runs in {out}: wait for it, or name another --out"
            ) from None
        yield


def folders_of(file: PipelineFile, out: Path) -> dict[str, Path]:
    """The folder of each stage's evidence; their names sort as the stages run."""
    return {
        stage.name: out / f"{i:02}-{stage.name}"
        for i, stage in enumerate(file.pipeline.stages, start=1)
    }


def fresh_folder(folder: Path, out: Path) -> None:
    """Make it, empty; what was there goes to `superseded/`, where it counts no longer."""
    if folder.exists():
        aside = out / SUPERSEDED
        aside.mkdir(exist_ok=True)
        taken = {path.name for path in aside.iterdir()}
        n = next(n for n in range(1, len(taken) + 2) if f"{folder.name}.{n}" not in taken)
        folder.rename(aside / f"{folder.name}.{n}")
    folder.mkdir()


def digests(folder: Path, out: Path) -> dict[str, str]:
    """SHA-256 (hex) of each file of evidence, by its path in the run's folder."""
    return {
        path.relative_to(out).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in _CHANGES
    }


def damage(record: StageRecord, out: Path) -> str | None:
    """What of a stage's evidence is missing or changed since; None: nothing."""
    for name, digest in record.files.items():
        path = out / name
        if not path.is_file():
            return f"{name} is gone"
        if file_sha256(path) != digest:
            return f"{name} changed"
    made = record.findings.made if record.findings is not None else ()
    return next((fault for each in made if (fault := _changed(each)) is not None), None)


def _changed(made: MadeVariant) -> str | None:
    folder = Path(made.folder)
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    if manifest is None or not Path(made.served).is_dir():
        return f"{made.name} is no longer in {folder}"
    return None if manifest.digest() == made.manifest_sha256 else f"{folder} changed"
