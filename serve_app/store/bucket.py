"""Variants in a bucket: write one, see which there are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

from serve_app.domain.errors import CheckpointError
from serve_app.domain.units import GIB, MIB
from serve_app.store.manifest import Advance, FileEntry
from serve_app.store.place import S3Place, is_digest
from serve_app.store.s3 import refusing, s3_client, transfer_config
from serve_app.store.stored import (
    MAX_RECORD_BYTES,
    VARIANT_JSON,
    StoredVariant,
    decode_record,
    encode_record,
)

PART_BYTES = 16 * MIB
MAX_PARTS = 10_000
"""S3's own limit; parts grow where a file would need more."""
UPLOADS = 8
"""Parts sent at once."""
_SHA256 = "sha256"
"""The key of our digest in an object's metadata."""
_MAX_OBJECT_BYTES = 5 * 1024 * GIB


class Bucket:
    """A prefix, or one variant of it where the place has a digest.

    Raises CheckpointError, as `S3Source`.
    """

    def __init__(self, place: S3Place) -> None:
        self.place = place

    @cached_property
    def _client(self) -> Any:
        return s3_client(self.place.uri)

    def record(self) -> StoredVariant | None:
        """The record of the variant, if it was pushed whole; None where there is none."""
        key = self.place.folder + VARIANT_JSON
        raw = self._get(key)
        return None if raw is None else decode_record(raw, self._uri(key))

    def has(self, name: str, entry: FileEntry) -> bool:
        """Whether a push has put this very file there."""
        from botocore.exceptions import ClientError

        key = self.place.folder + name
        with refusing(self._uri(key)):
            try:
                head = self._client.head_object(Bucket=self.place.bucket, Key=key)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in {403, 404}:
                    return False  # without the right to list, S3 does not tell these apart
                raise
        told = head.get("Metadata", {}).get(_SHA256)
        return bool(head["ContentLength"] == entry.bytes and told == entry.sha256)

    def upload(self, path: Path, entry: FileEntry, advance: Advance) -> None:
        """Send one file, large ones in parts; S3 holds each part against a checksum."""
        key = self.place.folder + path.name
        if entry.bytes > _MAX_OBJECT_BYTES:
            raise CheckpointError(f"{path} is larger than an object of S3 may be: cut it up")
        part_bytes = max(PART_BYTES, -(-entry.bytes // MAX_PARTS))
        config = transfer_config(part_bytes, UPLOADS)
        with refusing(self._uri(key), "write"):
            self._client.upload_file(
                *(str(path), self.place.bucket, key),
                ExtraArgs={"Metadata": {_SHA256: entry.sha256}},
                Config=config,
                Callback=advance,
            )

    def put(self, name: str, data: bytes, sha256: str) -> None:
        """Write a small object whole."""
        key = self.place.folder + name
        with refusing(self._uri(key), "write"):
            self._client.put_object(
                Bucket=self.place.bucket, Key=key, Body=data, Metadata={_SHA256: sha256}
            )

    def publish(self, record: StoredVariant) -> None:
        """Make a variant seen whose files are all there."""
        self.put(VARIANT_JSON, encode_record(record), "")

    def variants(self) -> list[tuple[S3Place, StoredVariant]]:
        """Every variant below the prefix, however deep, that was pushed whole; by name."""
        with ThreadPoolExecutor(UPLOADS) as pool:
            found = list(pool.map(self._variant, self._records()))
        return [each for each in found if each is not None]

    def _records(self) -> Iterator[str]:
        with refusing(self.place.uri, "list"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            )
            for page in pages:
                for item in page.get("Contents", []):
                    key = str(item["Key"])
                    folder, _, name = key.rpartition("/")
                    if name == VARIANT_JSON and is_digest(folder.rpartition("/")[2]):
                        yield key

    def _variant(self, key: str) -> tuple[S3Place, StoredVariant] | None:
        prefix, digest, _ = ("/" + key).rsplit("/", 2)
        place = S3Place(self.place.bucket, f"{prefix}/".lstrip("/"), digest)
        raw = self._get(key)
        return None if raw is None else (place, decode_record(raw, self._uri(key)))

    def _get(self, key: str) -> bytes | None:
        from botocore.exceptions import ClientError

        with refusing(self._uri(key)):
            try:
                answer = self._client.get_object(Bucket=self.place.bucket, Key=key)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise
            with closing(answer["Body"]) as body:
                data: bytes = body.read(MAX_RECORD_BYTES)
        return data

    def _uri(self, key: str) -> str:
        return f"s3://{self.place.bucket}/{key}"
