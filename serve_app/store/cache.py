"""The checkpoints that this node has, each a folder named by the digest of its manifest.

    <digest>/             whole, verified, on disk; it appears by a rename
    .work/<key>/          what is being downloaded, and how far it is
    .locks/<key>          held by who downloads it
    .leases/<digest>      held, shared, by whoever uses it; its time is when that last began
    .names/<key>          the digest of what was downloaded under this key

`key` is a digest too: of the uri and the version that was asked for.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve_app.domain.errors import CheckpointError
from serve_app.reference.locate import cache_dir
from serve_app.store.locks import FileLock
from serve_app.store.manifest import write_whole
from serve_app.store.place import is_digest

STORE_DIR = "QUANTILE_STORE_DIR"
"""Environment variable: the folder of the cache, where it is not `$QUANTILE_HOME/store`."""
POLL_S = 0.1


def store_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cache of this node is. Not created here."""
    named = environ.get(STORE_DIR)
    return Path(named).expanduser() if named else cache_dir() / "store"


@dataclass(frozen=True)
class Lease:
    """As long as this is not released, and the process lives, the folder stays."""

    digest: str
    folder: Path
    lock: FileLock
    is_fresh: bool = False
    """It was downloaded, and verified, for whoever has this lease."""

    def release(self) -> None:
        """Let the folder go when its time comes."""
        self.lock.release()


@dataclass(frozen=True)
class Entry:
    """A whole checkpoint, or an unfinished download (`is_whole` false), of the cache."""

    name: str
    n_bytes: int
    """Of the blocks that it takes on disk."""
    used_unix_s: float
    """When its last use began; of a download, when it last got a byte."""
    is_whole: bool


class Cache:
    """The cache in `root`; several processes and threads may use it at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or store_dir()

    def find(self, digest: str) -> Lease | None:
        """A lease on the checkpoint, None where the cache does not have it."""
        folder = self.root / digest
        if not folder.is_dir():
            return None
        lock = self._lease_lock(digest).shared(_nap)
        if not folder.is_dir():  # swept meanwhile
            lock.release()
            return None
        os.utime(lock.path)
        return Lease(digest, folder, lock)

    def named(self, key: str) -> str | None:
        """The digest of what was downloaded under this key, if it is known."""
        try:
            digest = (self.root / ".names" / key).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return digest if is_digest(digest) else None

    def downloading(self, key: str, wait: Callable[[], None]) -> FileLock:
        """The right to download under this key; `wait` is called while somebody else has it."""
        return FileLock(self.root / ".locks" / key).exclusive(wait)

    def work(self, key: str) -> Path:
        """The folder of a download; of whoever holds its lock."""
        return self.root / ".work" / key

    def publish(self, files: Path, key: str, digest: str) -> Lease:
        """Move a whole, verified folder into the cache, where it is on disk when this returns.

        Raises CheckpointError where the disk fails.
        """
        try:
            lock = self._lease_lock(digest).shared(_nap)
            publish(files, self.root / digest)
            os.utime(lock.path)
            names = self.root / ".names"
            names.mkdir(exist_ok=True)
            write_whole(names / key, digest)
            shutil.rmtree(self.work(key), ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.root}: {error}") from None
        return Lease(digest, self.root / digest, lock, is_fresh=True)

    def entries(self) -> list[Entry]:
        """What there is, downloads that were broken off among it."""
        return [
            *(self._entry(path, True) for path in _folders(self.root) if is_digest(path.name)),
            *(self._entry(path, False) for path in _folders(self.root / ".work")),
        ]

    def is_used(self, entry: Entry) -> bool:
        """Whether anybody holds a lease on it, or downloads it, at this moment."""
        lock = self._lock_of(entry)
        is_free = lock.try_exclusive()
        lock.release()
        return not is_free

    def drop(self, entry: Entry) -> bool:
        """Remove it; False, and nothing happens, while anybody uses it."""
        folder = self.root / entry.name if entry.is_whole else self.work(entry.name)
        lock = self._lock_of(entry)
        if not lock.try_exclusive():
            return False
        trash = self.root / f".trash-{entry.name}-{os.getpid()}"
        try:
            with suppress(FileNotFoundError):
                folder.rename(trash)  # at once: nobody sees half of it
        finally:
            lock.release()
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def empty_trash(self) -> None:
        """Remove what a killed `drop` had moved aside."""
        for path in _folders(self.root):
            if path.name.startswith(".trash-"):
                shutil.rmtree(path, ignore_errors=True)

    def _entry(self, path: Path, is_whole: bool) -> Entry:
        clock = self._lease_lock(path.name).path if is_whole else path / "journal"
        used = next((each.stat().st_mtime for each in (clock, path) if each.exists()), time.time())
        blocks = sum(each.stat().st_blocks for each in path.rglob("*") if each.is_file())
        return Entry(path.name, 512 * blocks, used, is_whole)

    def _lock_of(self, entry: Entry) -> FileLock:
        if entry.is_whole:
            return self._lease_lock(entry.name)
        return FileLock(self.root / ".locks" / entry.name)

    def _lease_lock(self, digest: str) -> FileLock:
        return FileLock(self.root / ".leases" / digest)


def publish(files: Path, final: Path) -> None:
    """Rename a folder whose files are on disk, and see to it that the name is on disk, too.

    Where there is one of that name already, it stays. Raises OSError.
    """
    _sync(files)
    try:
        files.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    _sync(final.parent)


def sync_file(path: Path) -> None:
    """Have a file's bytes on disk. Raises OSError."""
    _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _nap() -> None:
    time.sleep(POLL_S)
