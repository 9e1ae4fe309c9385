"""Put a checkpoint of this machine into S3, so that it is seen whole or not at all."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import CheckpointError
from serve_app.store.bucket import Bucket
from serve_app.store.inspect import inspect_checkpoint
from serve_app.store.manifest import (
    MANIFEST_JSON,
    WRITTEN_LATER,
    FileEntry,
    Manifest,
    encode_manifest,
    file_sha256,
    list_files,
    read_manifest,
    verify,
)
from serve_app.store.place import S3Place
from serve_app.store.progress import Progress
from serve_app.store.source import LocalSource
from serve_app.store.stored import StoredVariant


@dataclass(frozen=True)
class Pushed:
    """`sent` and `kept`: names of the files that were uploaded, and that were there already."""

    place: S3Place
    record: StoredVariant
    sent: tuple[str, ...]
    kept: tuple[str, ...]


def push(
    folder: Path,
    place: S3Place,
    progress: Progress,
    now_unix_s: float,
    origin: str | None = None,
) -> Pushed:
    """Upload a folder below the prefix, under the digest of its manifest.

    Files first, then the manifest, then the record that makes the variant seen; what an earlier
    push has put there is not sent again. A folder without a manifest gets one in the bucket. Raises
    CheckpointError for a folder that is not what its manifest says, or not a checkpoint that
    QuanTile can serve, or for a bucket that refuses.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: need one that holds a checkpoint")
    if place.digest is not None:
        raise CheckpointError(
            f"{place.uri} names a digest, which follows from the files: leave it out"
        )
    scheme = inspect_checkpoint(LocalSource(folder)).scheme
    manifest = _manifest(folder, progress)
    bucket = Bucket(place.at(manifest.digest()))
    companions = _companions(folder)
    files = {**manifest.files, **companions}
    advance = progress.moving(f"push {folder.name}", sum(entry.bytes for entry in files.values()))
    sent, kept = [], []
    for name, entry in files.items():
        if bucket.has(name, entry):
            kept.append(name)
            advance(entry.bytes)
        else:
            bucket.upload(folder / name, entry, advance)
            sent.append(name)
    raw = _raw_manifest(folder, manifest)
    listing = FileEntry(len(raw), hashlib.sha256(raw).hexdigest())
    bucket.put(MANIFEST_JSON, raw, listing.sha256)
    record = StoredVariant(
        digest=manifest.digest(),
        total_bytes=listing.bytes + sum(entry.bytes for entry in files.values()),
        scheme=scheme,
        companions={**companions, MANIFEST_JSON: listing},
        pushed_unix_s=int(now_unix_s),
        origin=origin,
    )
    there = bucket.record()
    if there is None or there.companions != record.companions:
        bucket.publish(record)
        there = record
    return Pushed(bucket.place, there, tuple(sent), tuple(kept))


def _manifest(folder: Path, progress: Progress) -> Manifest:
    """The folder's own, held against its files; else one of the files that are there."""
    manifest = read_manifest(folder)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    advance = progress.moving(f"hash {folder.name}", n_bytes)
    if manifest is None:
        return list_files(folder, advance)
    verify(folder, manifest, advance)
    return manifest


def _raw_manifest(folder: Path, manifest: Manifest) -> bytes:
    path = folder / MANIFEST_JSON
    return path.read_bytes() if path.is_file() else encode_manifest(manifest)


def _companions(folder: Path) -> dict[str, FileEntry]:
    """The gate's verdict and the model card, where the folder has them."""
    return {
        name: FileEntry((folder / name).stat().st_size, file_sha256(folder / name))
        for name in sorted(WRITTEN_LATER - {MANIFEST_JSON})
        if (folder / name).is_file()
    }
