"""Checkpoints in S3, or in a store that speaks it (`AWS_ENDPOINT_URL`). Needs only the rights to
list and to read; boto3 finds credentials and region in its usual places."""

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

from serve_app.domain.errors import CheckpointError, UnreachableError
from serve_app.store.manifest import MANIFEST_JSON
from serve_app.store.place import s3_place
from serve_app.store.source import PIECE_BYTES, Source
from serve_app.store.stored import (
    MAX_RECORD_BYTES,
    VARIANT_JSON,
    StoredFiles,
    decode_record,
    stored_files,
)

ATTEMPTS = 5
"""With botocore's own back-off: throttling, 5xx, broken connections."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
CONNECTIONS = 64
"""Kept open at most; no transfer takes more."""

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where an IAM role is"
)
_FIXES = {
    "NoSuchBucket": "there is no such bucket: check the name and AWS_ENDPOINT_URL",
    "AccessDenied": "access denied: the credentials need s3:GetObject on "
    "the prefix, s3:ListBucket on the bucket where no digest is named, and s3:PutObject to push "
    "(or it is not there: S3 does not tell without s3:ListBucket)",
    "InvalidAccessKeyId": f"these credentials are unknown there: {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key is wrong: {_CREDENTIALS}",
    "ExpiredToken": "the credentials have expired: renew them",
    "NoSuchKey": "it was deleted meanwhile, or never was: check the prefix",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
}
_PASSING = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"}
_ALIASES = {"403": "AccessDenied", "404": "NoSuchKey", "301": "PermanentRedirect"}


class S3Source(Source):
    """The objects right below a prefix, or those of a variant that is named by its digest.

    Of the latter `stored` says which they are: reading them needs no right to list.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.place = s3_place(uri)

    @cached_property
    def stored(self) -> StoredFiles:
        """The record and the manifest of a variant that is named by its digest.

        Raises CheckpointError as `read`, and where they are not what the digest says.
        """
        digest = self.place.digest
        assert digest is not None
        record = decode_record(self._whole(VARIANT_JSON), self.locate(VARIANT_JSON))
        raw = self._whole(MANIFEST_JSON)
        return stored_files(record, raw, digest, self.uri)

    @property
    def checksums(self) -> Mapping[str, str]:
        """Of a variant that is named by its digest, each file's SHA-256."""
        if self.place.digest is None:
            return {}
        return {name: f"sha256:{entry.sha256}" for name, entry in self.stored.files.items()}

    @property
    def version(self) -> str:
        """The digest; else of sizes and entity tags."""
        if self.place.digest is not None:
            return self.place.digest
        told = sorted((name, item["Size"], item["ETag"]) for name, item in self._listing.items())
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def _list(self) -> Mapping[str, int]:
        if self.place.digest is not None:
            return {name: entry.bytes for name, entry in self.stored.files.items()}
        return {name: item["Size"] for name, item in self._listing.items()}

    @cached_property
    def _client(self) -> Any:
        return s3_client(self.uri)

    @cached_property
    def _listing(self) -> dict[str, dict[str, Any]]:
        place = self.place
        with refusing(self.uri):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=place.bucket, Prefix=place.prefix, Delimiter="/"
            )
            found = [item for page in pages for item in page.get("Contents", [])]
        return {
            item["Key"].removeprefix(place.prefix): item
            for item in found
            if item["Key"] != place.prefix
        }

    def _whole(self, name: str) -> bytes:
        """A small object whose size nothing tells."""
        place = self.place
        with refusing(self.locate(name)):
            answer = self._client.get_object(Bucket=place.bucket, Key=place.folder + name)
            with closing(answer["Body"]) as body:
                data: bytes = body.read(MAX_RECORD_BYTES)
        return data

    def _stream(self, name: str, start: int, length: int) -> Generator[bytes, None, None]:
        place = self.place
        with refusing(self.locate(name)):
            answer = self._client.get_object(
                Bucket=place.bucket,
                Key=place.folder + name,
                Range=f"bytes={start}-{start + length - 1}",
            )
            with closing(answer["Body"]) as body:  # its own `with` gives the raw stream
                if "ContentRange" not in answer:  # a store that knows no ranges sends all of it
                    _skip(body, start)
                while length and (piece := body.read(min(length, PIECE_BYTES))):
                    length -= len(piece)
                    yield piece


def s3_client(uri: str) -> Any:
    """A client of S3 with our timeouts; several threads may use it at once.

    Raises CheckpointError that names `uri` where the environment's settings are none.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
    )
    with refusing(uri):
        return boto3.session.Session().client("s3", config=config)


def transfer_config(part_bytes: int, concurrency: int) -> Any:
    """How boto3's own transfers cut a file up: requests of so many bytes, so many at once."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=part_bytes,
        multipart_chunksize=part_bytes,
        max_concurrency=concurrency,
    )


@contextmanager
def refusing(place: str, doing: str = "read") -> Iterator[None]:
    """Errors of boto3 in here become ours, which say what to do about them."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except Boto3Error as error:  # a transfer's, which keeps the cause aside
        raise _refused(place, error.__context__ or error, doing) from None
    except (BotoCoreError, ClientError, ValueError) as error:
        raise _refused(place, error, doing) from None


def _skip(body: Any, n_bytes: int) -> None:
    while n_bytes and (piece := body.read(min(n_bytes, PIECE_BYTES))):
        n_bytes -= len(piece)


def _refused(place: str, error: BaseException, doing: str) -> CheckpointError:
    """What to do about an error of botocore; ValueError is how it refuses a malformed endpoint."""
    from botocore import exceptions

    may_pass = True
    if isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        may_pass = status >= 500 or status == 429 or code in _PASSING
        fix = _FIXES.get(_ALIASES.get(code, code), f"{error}")
    elif isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        may_pass, fix = False, f"no credentials ({error}): {_CREDENTIALS}"
    elif isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        fix = f"{error}: check the network and AWS_ENDPOINT_URL"
    elif isinstance(error, ValueError):
        may_pass = False
        fix = f"{error}: give AWS_ENDPOINT_URL a whole address, such as http://minio:9000"
    else:
        fix = f"{error}; try again, or check AWS_ENDPOINT_URL"
    return (UnreachableError if may_pass else CheckpointError)(f"cannot {doing} {place}: {fix}")
