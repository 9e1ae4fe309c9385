"""A checkpoint folder's files by size and SHA-256: `manifest.json`, written when it is whole."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from serve_app.domain.errors import CheckpointError

MANIFEST_JSON = "manifest.json"
GATE_JSON = "gate.json"
CARD_MD = "README.md"
SCHEMA_VERSION = 1
WRITTEN_LATER = frozenset({MANIFEST_JSON, GATE_JSON, CARD_MD})
"""Not listed: they say something of the listed files."""

Advance = Callable[[int], None]
"""Told the bytes that were read since it was last told."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """Every file of the folder by its name."""

    files: dict[str, FileEntry]
    schema_version: int = SCHEMA_VERSION

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(entry.bytes for entry in self.files.values())

    def digest(self) -> str:
        """SHA-256 (hex) of the listing: another one as soon as any file differs."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def write_manifest(folder: Path) -> Manifest:
    """List the files that are there now, and write the list beside them."""
    manifest = list_files(folder)
    write_whole(folder / MANIFEST_JSON, encode_manifest(manifest).decode())
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, None where there is none. Raises `CheckpointError` if damaged."""
    path = folder / MANIFEST_JSON
    try:
        return decode_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest of these bytes. Raises `CheckpointError` if damaged or of a newer schema."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{where} is not a manifest ({error}): copy the folder anew, or make it again"
        ) from None
    if manifest.schema_version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{where} has schema {manifest.schema_version}, this QuanTile reads up to "
            f"{SCHEMA_VERSION}: update QuanTile here, or make the variant with this one"
        )
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted")) + b"\n"


def list_files(folder: Path, advance: Advance = lambda n_bytes: None) -> Manifest:
    """A manifest of the files that are there now, hidden ones left out."""
    return Manifest(
        {
            path.name: FileEntry(path.stat().st_size, file_sha256(path, advance))
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name not in WRITTEN_LATER and path.name[0] != "."
        }
    )


def verify(folder: Path, manifest: Manifest, advance: Advance = lambda n_bytes: None) -> None:
    """Compare every listed file with what is there, sizes first.

    Raises `CheckpointError` that names each file that is missing, differs, or is not listed: an
    engine would read a shard too many as well.
    """
    faults = [
        f"{path.name} is not in {MANIFEST_JSON}"
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in manifest.files.keys() | WRITTEN_LATER
    ]
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry.bytes:
            faults.append(f"{name} has {size:,} bytes, need {entry.bytes:,}")
    for name, entry in manifest.files.items() if not faults else ():
        if file_sha256(folder / name, advance) != entry.sha256:
            faults.append(f"{name} has another SHA-256 than {MANIFEST_JSON} says")
    if faults:
        raise CheckpointError(
            f"{folder} is not as it was made: {'; '.join(faults)}; copy it anew, or make it again"
        )


def file_sha256(path: Path, advance: Advance = lambda n_bytes: None) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
