"""What stands beside a variant's files in a bucket: `variant.json`, written after all of them.

A variant without it was not pushed whole, and is not seen. It names the manifest by its digest, and
the files that say something of the manifest and are therefore not in it: the gate's verdict, the
model card, the manifest itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantScheme
from serve_app.store.manifest import CARD_MD, MANIFEST_JSON, FileEntry, Manifest, decode_manifest

VARIANT_JSON = "variant.json"
SCHEMA_VERSION = 1
MAX_RECORD_BYTES = 1 << 24


class StoredVariant(msgspec.Struct, frozen=True):
    """`variant.json`. `companions` are the files beside those of the manifest, it among them."""

    digest: str
    total_bytes: int
    """Of the manifest's files and the companions."""
    scheme: QuantScheme
    companions: dict[str, FileEntry]
    pushed_unix_s: int
    origin: str | None = None
    """Where it was copied from, with its revision; None for a folder."""
    schema_version: int = SCHEMA_VERSION

    @property
    def card(self) -> str | None:
        """The name of its model card, None where it has none."""
        return CARD_MD if CARD_MD in self.companions else None


@dataclass(frozen=True)
class StoredFiles:
    """A variant's record, and all its files, companions included, with size and SHA-256."""

    record: StoredVariant
    manifest: Manifest
    files: Mapping[str, FileEntry]


def encode_record(record: StoredVariant) -> bytes:
    """The bytes of `variant.json`."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted")) + b"\n"


def decode_record(raw: bytes, where: str) -> StoredVariant:
    """The record. Raises CheckpointError, naming `where`, if damaged or of a newer schema."""
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{where} has schema {version}, this QuanTile reads up to {SCHEMA_VERSION}: update "
                "QuanTile here, or push the variant again with this one"
            )
        return msgspec.json.decode(raw, type=StoredVariant)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{where} is not the record of a variant ({error}): push it again"
        ) from None


def stored_files(record: StoredVariant, raw: bytes, digest: str, uri: str) -> StoredFiles:
    """What the record and the bytes of the manifest beside it say together.

    Raises CheckpointError unless both are of this digest.
    """
    manifest = decode_manifest(raw, f"{uri}/{MANIFEST_JSON}")
    found = {manifest.digest(), record.digest}
    if found != {digest}:
        raise CheckpointError(
            f"{uri}: need the digest {digest}, have {' and '.join(sorted(found - {digest}))}: the "
            "store was changed by hand; push the variant again"
        )
    return StoredFiles(record, manifest, {**manifest.files, **record.companions})


class _Version(msgspec.Struct):
    schema_version: int
