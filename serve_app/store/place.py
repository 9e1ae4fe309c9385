"""How a variant in S3 is named: `s3://bucket/prefix@<digest>`, and where its objects then are."""

import re
from dataclasses import dataclass

from serve_app.domain.errors import CheckpointError
from serve_app.store.source import S3

_NAME = re.compile(r"(?P<prefix>[^@]*)@(?P<digest>[0-9a-f]+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class S3Place:
    """A bucket, a prefix that is empty or ends in a slash, and the digest of a variant below it."""

    bucket: str
    prefix: str
    digest: str | None = None

    @property
    def folder(self) -> str:
        """What the keys of its objects begin with.

        Each variant of a prefix has a folder of its own, named by its digest: a push never changes
        what a running replica was told to load.
        """
        return f"{self.prefix}{self.digest}/" if self.digest else self.prefix

    @property
    def uri(self) -> str:
        """As it is written in a configuration."""
        name = f"{S3}{self.bucket}/{self.prefix}".rstrip("/")
        return f"{name}@{self.digest}" if self.digest else name

    @property
    def short(self) -> str:
        """For people: the digest's first characters are enough."""
        return self.uri[: -len(self.digest) + 12] if self.digest else self.uri

    def at(self, digest: str) -> "S3Place":
        """The variant of this digest below the same prefix."""
        return S3Place(self.bucket, self.prefix, digest)


def s3_place(uri: str) -> S3Place:
    """Take `s3://bucket/prefix`, with or without `@<digest>`, apart.

    Raises CheckpointError without a bucket, or with a digest that is not whole.
    """
    bucket, _, rest = uri.removeprefix(S3).partition("/")
    rest = rest.strip("/")
    digest = None
    if found := _NAME.fullmatch(rest):
        rest, digest = found["prefix"].rstrip("/"), found["digest"]
        if not is_digest(digest):
            raise CheckpointError(
                f"{uri!r} has a digest of {len(digest)} characters: need all 64, as "
                "`quantile store list` and `quantile store push` print them"
            )
    if not bucket or "@" in bucket:
        raise CheckpointError(f"{uri!r} names no bucket: need s3://bucket/prefix[@digest]")
    return S3Place(bucket, f"{rest}/" if rest else "", digest)


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 in hexadecimal."""
    return bool(_DIGEST.fullmatch(text))
