"""From a checkpoint's name in a configuration to a folder of this node, before an engine starts."""

import logging
from pathlib import Path

from serve_app.domain.errors import CheckpointError
from serve_app.store.cache import Cache, Entry, Lease
from serve_app.store.manifest import GATE_JSON, read_manifest, verify
from serve_app.store.place import s3_place
from serve_app.store.progress import LogProgress, Progress
from serve_app.store.pull import PullSettings, into_cache
from serve_app.store.s3 import S3Source
from serve_app.store.seal import GateFile, decode_gate
from serve_app.store.source import GGUF_SUFFIX, HUB, S3

_leases: list[Lease] = []
"""What this process serves: it stays in the cache until the process ends."""


def is_remote(uri: str) -> bool:
    """Whether a checkpoint has to be fetched before it can be served."""
    return uri.startswith((S3, HUB))


def fetch_checkpoint(uri: str, cache: Cache | None = None) -> Path:
    """The folder of a checkpoint, downloaded into this node's cache where it is not there yet.

    Every byte was held against the manifest when this returns: what was there already is read once,
    and downloaded anew if the disk has changed it. The process keeps the folder from being swept.
    Raises CheckpointError.
    """
    require_immutable(uri)
    cache = cache or Cache()
    settings = PullSettings(progress=LogProgress(logging.getLogger("ray.serve")))
    lease = into_cache(uri, cache, settings)
    try:
        _verify(lease, settings.progress)
    except CheckpointError as error:
        lease.release()
        settings.progress.said(f"{error}; downloading it anew")
        if not cache.drop(Entry(lease.digest, 0, 0.0, is_whole=True)):
            raise CheckpointError(
                f"{error}; another process of this node uses the folder: end it first"
            ) from None
        lease = into_cache(uri, cache, settings)
        _verify(lease, settings.progress)
    _leases.append(lease)
    return lease.folder


def gate_in(source: S3Source) -> GateFile | None:
    """The verdicts that lie beside a variant in S3 now: it may have been judged on one more kind of
    machine since this node fetched it. None where there are none. Raises CheckpointError."""
    size = source.sizes.get(GATE_JSON)
    return decode_gate(source.read(GATE_JSON, 0, size)) if size else None


def require_immutable(uri: str) -> None:
    """Refuse a name whose bytes may differ from one replica to the next. Raises CheckpointError."""
    place = uri.rpartition("/")[0] if uri.endswith(GGUF_SUFFIX) else uri
    if uri.startswith(S3) and s3_place(place).digest is None:
        name = s3_place(place).uri
        raise CheckpointError(
            f"{uri} may change while replicas come and go: need {name}@<digest>; `quantile store "
            f"list {name}` shows which there are, `quantile store push` makes one"
        )


def _verify(lease: Lease, progress: Progress) -> None:
    if lease.is_fresh:
        return
    manifest = read_manifest(lease.folder)
    if manifest is None or manifest.digest() != lease.digest:
        raise CheckpointError(f"{lease.folder} has another manifest than its name says")
    advance = progress.moving(f"verify {lease.folder}", manifest.total_bytes)
    verify(lease.folder, manifest, advance)
