"""Bring a checkpoint from S3 or the hub to this node: into its cache, or into a folder."""

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from serve_app.domain.errors import CheckpointError
from serve_app.domain.units import format_bytes
from serve_app.store.cache import POLL_S, Cache, Lease, publish, sync_file
from serve_app.store.locks import FileLock
from serve_app.store.manifest import (
    MANIFEST_JSON,
    WRITTEN_LATER,
    FileEntry,
    Manifest,
    encode_manifest,
    read_manifest,
    verify,
)
from serve_app.store.progress import Progress, Silent
from serve_app.store.retry import persist
from serve_app.store.s3 import S3Source
from serve_app.store.source import HUB, S3, open_source
from serve_app.store.transfer import FILES, TransferSettings, Wanted, download

_OTHER_FRAMEWORKS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".tflite")
_WAIT_SAID_EVERY_S = 30.0


class Remote:
    """A checkpoint elsewhere, named by `s3://bucket/prefix[@digest]` or `hf://owner/name[@rev]`.

    Making one asks nobody. Raises CheckpointError for another kind of name.
    """

    def __init__(self, uri: str) -> None:
        if not uri.startswith((S3, HUB)):
            raise CheckpointError(
                f"{uri!r} is not in a store: need s3://bucket/prefix@<digest> or "
                "hf://owner/name[@revision]"
            )
        self.uri = uri
        self.source = open_source(uri)

    @property
    def digest(self) -> str | None:
        """The digest that the name ends in, if any: the checkpoint is known before it is asked."""
        return self.source.place.digest if isinstance(self.source, S3Source) else None

    @cached_property
    def key(self) -> str:
        """Under which it is downloaded: of the name and the version that is there now."""
        return (
            self.digest or hashlib.sha256(f"{self.uri}\n{self.source.version}".encode()).hexdigest()
        )

    @cached_property
    def wanted(self) -> dict[str, Wanted]:
        """The files to download. Raises CheckpointError, also where there are none."""
        sizes, checksums = self.source.sizes, self.source.checksums
        names = list(sizes) if self.digest else worth_copying(sizes)
        if not names:
            raise CheckpointError(
                f"{self.uri} holds no checkpoint: check the name, or see what there is with "
                "`quantile store list s3://bucket`"
            )
        if unsafe := [name for name in names if name in {".", ".."} or set(name) & set("/\0")]:
            raise CheckpointError(f"{self.uri} has a file {unsafe[0]!r}, which leads elsewhere")
        return {name: Wanted(sizes[name], checksums.get(name, "")) for name in sorted(names)}

    @property
    def title(self) -> str:
        """A short name."""
        return self.source.place.short if isinstance(self.source, S3Source) else self.uri

    @property
    def total_bytes(self) -> int:
        """Of the files to download."""
        return sum(wanted.n_bytes for wanted in self.wanted.values())

    @property
    def origin(self) -> str:
        """The name with the version that it stands for."""
        is_hub = self.uri.startswith(HUB)
        return f"{self.uri} at {self.source.version}" if is_hub else self.uri


def worth_copying(sizes: Mapping[str, int]) -> list[str]:
    """Of a folder's files, those that an engine may read: no hidden ones, and none of the weights
    of other frameworks where there are safetensors."""
    shown = [name for name in sizes if not name.startswith(".")]
    if not any(name.endswith(".safetensors") for name in shown):
        return shown
    return [name for name in shown if not name.endswith(_OTHER_FRAMEWORKS)]


@dataclass(frozen=True)
class PullSettings:
    """How a pull goes about it, and who is told."""

    transfer: TransferSettings = field(default_factory=TransferSettings)
    progress: Progress = field(default_factory=Silent)


def into_cache(uri: str, cache: Cache, settings: PullSettings | None = None) -> Lease:
    """The checkpoint in this node's cache, downloaded unless it is there; verified then.

    However many processes of the node ask, one downloads, and the others wait for it. Raises
    CheckpointError as `download`, or where the bytes are not what the name says.
    """
    settings = settings or PullSettings()
    remote = Remote(uri)
    persist(lambda: remote.key, settings.transfer.backoff)
    if lease := _cached(remote, cache):
        return lease
    with cache.downloading(remote.key, _Waiting(uri, settings.progress)):
        if lease := _cached(remote, cache):
            return lease
        work = cache.work(remote.key)
        manifest = _download(remote, work, settings)
        return cache.publish(work / FILES, remote.key, manifest.digest())


def into_folder(uri: str, folder: Path, settings: PullSettings | None = None) -> Manifest:
    """The checkpoint in a folder that is there whole or not at all.

    One that holds it already is only verified. Raises CheckpointError as `into_cache`, and for a
    folder with something else in it.
    """
    settings = settings or PullSettings()
    remote = Remote(uri)
    persist(lambda: remote.key, settings.transfer.backoff)
    work = folder.parent / f".{folder.name}.pull"
    waiting = _Waiting(uri, settings.progress)
    with FileLock(folder.parent / f".{folder.name}.pull.lock").exclusive(waiting):
        if folder.is_dir() and any(folder.iterdir()):
            return _require_same(remote, folder)
        manifest = _download(remote, work, settings)
        try:
            publish(work / FILES, folder)
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {error}") from None
        shutil.rmtree(work, ignore_errors=True)
        return manifest


def _cached(remote: Remote, cache: Cache) -> Lease | None:
    digest = remote.digest or cache.named(remote.key)
    return cache.find(digest) if digest else None


def _require_same(remote: Remote, folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    names = {name for name in remote.wanted if name not in WRITTEN_LATER}
    is_same = manifest is not None and (
        manifest.digest() == remote.digest if remote.digest else manifest.files.keys() == names
    )
    if manifest is None or not is_same:
        raise CheckpointError(f"{folder} holds something else than {remote.uri}: give a new folder")
    verify(folder, manifest)
    return manifest


def _download(remote: Remote, work: Path, settings: PullSettings) -> Manifest:
    n_files = len(persist(lambda: remote.wanted, settings.transfer.backoff))
    settings.progress.said(
        f"{remote.title}: {n_files} files, {format_bytes(remote.total_bytes)}, to {work.parent}"
    )
    advance = settings.progress.moving(remote.title, remote.total_bytes)
    found = download(remote.source, remote.wanted, work, settings.transfer, advance)
    return _finish(remote, work / FILES, found)


def _finish(remote: Remote, files: Path, found: Mapping[str, FileEntry]) -> Manifest:
    """Hold the files against the manifest that came with them, or write the one that did not."""
    for path in files.iterdir():
        if path.name not in found:
            path.unlink()  # of an earlier version of the place
    listed = {name: entry for name, entry in found.items() if name not in WRITTEN_LATER}
    manifest = read_manifest(files)
    if manifest is None:
        manifest = Manifest(listed)
        path = files / MANIFEST_JSON
        path.write_bytes(encode_manifest(manifest))
        sync_file(path)
    wrong = [name for name, entry in manifest.files.items() if listed.get(name) != entry]
    wrong += sorted(listed.keys() - manifest.files.keys())
    if wrong or (remote.digest and manifest.digest() != remote.digest):
        raise CheckpointError(
            f"{remote.uri} is not what its {MANIFEST_JSON} says: {', '.join(wrong) or 'its digest'}"
            "; push it again"
        )
    return manifest


class _Waiting:
    """Sleep a little, and say now and then for whom."""

    def __init__(self, uri: str, progress: Progress) -> None:
        self._uri = uri
        self._progress = progress
        self._said_s: float | None = None

    def __call__(self) -> None:
        now_s = time.monotonic()
        if self._said_s is None or now_s - self._said_s > _WAIT_SAID_EVERY_S:
            self._progress.said(f"{self._uri}: another process of this node downloads it; waiting")
            self._said_s = now_s
        time.sleep(POLL_S)
