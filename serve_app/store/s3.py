"""Checkpoints in S3, or in a store that speaks it (`AWS_ENDPOINT_URL`). Needs only the rights to
list and to read; boto3 finds credentials and region in its usual places."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from serve_app.domain.errors import CheckpointError
from serve_app.store.source import S3, Source

ATTEMPTS = 5
"""With botocore's own back-off: throttling, 5xx, broken connections."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
CONNECTIONS = 16

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where an IAM role is"
)
_FIXES = {
    "NoSuchBucket": "there is no such bucket: check the name and AWS_ENDPOINT_URL",
    "AccessDenied": "access denied: the credentials need s3:ListBucket on the bucket and "
    "s3:GetObject on the prefix",
    "InvalidAccessKeyId": f"these credentials are unknown there: {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key is wrong: {_CREDENTIALS}",
    "ExpiredToken": "the credentials have expired: renew them",
    "NoSuchKey": "it was deleted meanwhile: check the prefix",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
}
_ALIASES = {"403": "AccessDenied", "404": "NoSuchKey", "301": "PermanentRedirect"}


class S3Source(Source):
    """The objects right below a prefix."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._bucket, _, prefix = uri.removeprefix(S3).partition("/")
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        if not self._bucket:
            raise CheckpointError(f"{uri!r} names no bucket: need s3://bucket/prefix")

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=CONNECTIONS,
        )
        return boto3.session.Session().client("s3", config=config)

    def _list(self) -> Mapping[str, int]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            found = [item for page in pages for item in page.get("Contents", [])]
        except (BotoCoreError, ClientError, ValueError) as error:
            raise _refused(self.uri, error) from None
        return {
            item["Key"].removeprefix(self._prefix): item["Size"]
            for item in found
            if item["Key"] != self._prefix
        }

    def _fetch(self, name: str, start: int, length: int) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=self._prefix + name,
                Range=f"bytes={start}-{start + length - 1}",
            )
            with answer["Body"] as body:
                if "ContentRange" not in answer:  # a store that knows no ranges sends all of it
                    body.read(start)
                data: bytes = body.read(length)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise _refused(self.locate(name), error) from None
        return data


def _refused(place: str, error: Exception) -> CheckpointError:
    """What to do about an error of botocore; ValueError is how it refuses a malformed endpoint."""
    from botocore.exceptions import (
        ClientError,
        ConnectTimeoutError,
        EndpointConnectionError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        fix = _FIXES.get(_ALIASES.get(code, code), f"{error}")
    elif isinstance(error, NoCredentialsError | PartialCredentialsError):
        fix = f"no credentials ({error}): {_CREDENTIALS}"
    elif isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        fix = f"{error}: check the network and AWS_ENDPOINT_URL"
    elif isinstance(error, ValueError):
        fix = f"{error}: give AWS_ENDPOINT_URL a whole address, such as http://minio:9000"
    else:
        fix = f"{error}; try again, or check AWS_ENDPOINT_URL"
    return CheckpointError(f"cannot read {place}: {fix}")
