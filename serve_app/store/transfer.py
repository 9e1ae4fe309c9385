"""Download the files of a checkpoint into a folder: in parts, at once, resumed, and verified.

Each part is one ranged request. Parts are asked for in the order of their bytes, so that each file
is hashed behind the downloads, from the page cache. A download that is begun again, after an error
or SIGKILL, takes up each part where its journal says.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from serve_app.domain.errors import CheckpointError, UnreachableError
from serve_app.domain.units import MIB, format_bytes
from serve_app.store.journal import Journal
from serve_app.store.manifest import Advance, FileEntry
from serve_app.store.retry import Backoff
from serve_app.store.source import Source

MAX_CONCURRENCY = 64
FILES, JOURNAL = "files", "journal"
_READ_BYTES = 4 * MIB


@dataclass(frozen=True)
class Wanted:
    """One file to download: its bytes, and what its place says of them, if anything."""

    n_bytes: int
    checksum: str = ""
    """`sha256:<hex>`, or `git:<hex>` of a git blob; empty is not known."""


@dataclass(frozen=True)
class Part:
    """`n_bytes` of a file from `start`; `index` is its place in the journal."""

    file: str
    start: int
    n_bytes: int
    index: int


@dataclass(frozen=True)
class TransferSettings:
    """How a download goes about it."""

    concurrency: int = 8
    """Requests at once, at most `MAX_CONCURRENCY`."""
    hashers: int = 4
    """Files hashed at once."""
    backoff: Backoff = field(default_factory=Backoff)


def plan_parts(files: Mapping[str, Wanted], part_bytes: int) -> list[Part]:
    """The parts of all files, in order; an empty file has none."""
    spans = (
        (name, start, min(part_bytes, wanted.n_bytes - start))
        for name, wanted in files.items()
        for start in range(0, wanted.n_bytes, part_bytes)
    )
    return [Part(*span, index) for index, span in enumerate(spans)]


def download(
    source: Source,
    files: Mapping[str, Wanted],
    work: Path,
    settings: TransferSettings | None = None,
    advance: Advance = lambda n_bytes: None,
) -> dict[str, FileEntry]:
    """Have all files in `work/files`, on disk, each as its checksum says; tell their SHA-256.

    `work` is of nobody else meanwhile. `advance` is told of bytes that were there from before, too,
    and takes some back where a file has to be downloaded anew; it is called from several threads.
    Raises CheckpointError: no space (before the first byte), or bytes that are wrong twice;
    UnreachableError when the source stays away.
    """
    settings = settings or TransferSettings()
    (work / FILES).mkdir(parents=True, exist_ok=True)
    parts = plan_parts(files, source.part_bytes)
    try:
        with ExitStack() as opened:
            require_space(work, files)
            fds: dict[str, int] = {}
            for name, wanted in files.items():
                fds[name] = _open(work / FILES / name)
                opened.callback(os.close, fds[name])
                _allocate(fds[name], wanted.n_bytes)
            key = _key(source, files)
            lengths = [part.n_bytes for part in parts]
            journal = opened.enter_context(Journal(work / JOURNAL, key, lengths))
            advance(sum(journal.done))
            run = _Download(source, files, parts, fds, journal, settings, advance)
            return run.all()
    except OSError as error:
        raise CheckpointError(f"cannot write to {work}: {error.strerror or error}") from None


def require_space(work: Path, files: Mapping[str, Wanted]) -> None:
    """Raise CheckpointError unless the folder's disk has room for what is not there yet."""
    there = sum(
        path.stat().st_blocks * 512 for path in (work / FILES).iterdir() if path.name in files
    )
    need = sum(wanted.n_bytes for wanted in files.values()) - there
    if need > (free := shutil.disk_usage(work).free):
        raise CheckpointError(
            f"no space for the checkpoint: need {format_bytes(need)} more in {work}, have "
            f"{format_bytes(free)}: free some with `quantile store gc`, or set QUANTILE_STORE_DIR "
            "to a larger disk"
        )


class _StoppedError(Exception):
    """Another part failed."""


class _Download:
    """The state of one download; its threads share it."""

    def __init__(
        self,
        source: Source,
        files: Mapping[str, Wanted],
        parts: list[Part],
        fds: Mapping[str, int],
        journal: Journal,
        settings: TransferSettings,
        advance: Advance,
    ) -> None:
        self._source = source
        self._files = files
        self._parts: dict[str, list[Part]] = {name: [] for name in files}
        for part in parts:
            self._parts[part.file].append(part)
        self._fds = fds
        self._journal = journal
        self._settings = settings
        self._advance = advance
        self._rng = Random()
        self._stop = threading.Event()
        self._first_error: BaseException | None = None

    def all(self) -> dict[str, FileEntry]:
        """Fetch and check everything; the first error of any thread ends them all."""
        fetchers = ThreadPoolExecutor(self._settings.concurrency, "fetch")
        hashers = ThreadPoolExecutor(self._settings.hashers, "hash")
        try:
            asked = {
                name: [fetchers.submit(self._fetch, part) for part in parts]
                for name, parts in self._parts.items()
            }
            checked = [
                hashers.submit(self._check, name, fetched, fetchers.submit)
                for name, fetched in asked.items()
            ]
            return dict(each.result() for each in checked)
        except BaseException as error:
            self._stop.set()
            raise (self._first_error or error) from None
        finally:
            self._stop.set()
            fetchers.shutdown(cancel_futures=True)
            hashers.shutdown(cancel_futures=True)

    def _fetch(self, part: Part) -> None:
        """Have one part, whatever the connection does meanwhile."""
        try:
            failures = 0
            while (before := self._journal.done[part.index]) < part.n_bytes:
                if self._stop.is_set():
                    raise _StoppedError
                try:
                    self._fetch_on(part)
                except UnreachableError:
                    grew = self._journal.done[part.index] > before
                    failures = 1 if grew else failures + 1
                    pause_s = self._settings.backoff.pause_s(failures, self._rng)
                    if pause_s is None:
                        raise
                    self._stop.wait(pause_s)
        except BaseException as error:
            if not self._stop.is_set():
                self._first_error = error
            self._stop.set()
            raise

    def _fetch_on(self, part: Part) -> None:
        done = self._journal.done[part.index]
        file = self._fds[part.file]
        for piece in self._source.stream(part.file, part.start + done, part.n_bytes - done):
            _write_at(file, piece, part.start + done)
            done += len(piece)
            self._journal.mark(part.index, done)
            self._advance(len(piece))
            if self._stop.is_set():  # not before: what has come is kept
                raise _StoppedError

    def _check(
        self, name: str, fetched: list[Future[None]], submit: Callable[..., Future[None]]
    ) -> tuple[str, FileEntry]:
        """One file's SHA-256, hashed as its parts come; a file that is wrong is fetched again."""
        wanted, parts = self._files[name], self._parts[name]
        for is_last in (False, True):
            sha256, told = self._hash(name, fetched)
            if not wanted.checksum or told == wanted.checksum:
                os.fdatasync(self._fds[name])
                return name, FileEntry(wanted.n_bytes, sha256)
            for part in parts:
                self._journal.mark(part.index, 0)
            self._advance(-wanted.n_bytes)
            if not is_last:  # the wire may have changed it; the store is judged by a second look
                fetched = [submit(self._fetch, part) for part in parts]
        raise CheckpointError(
            f"{self._source.locate(name)} is damaged: need {wanted.checksum}, have {told}, twice; "
            "push it again"
        )

    def _hash(self, name: str, fetched: list[Future[None]]) -> tuple[str, str]:
        """SHA-256, and what compares with the wanted checksum."""
        wanted = self._files[name]
        sha256, blob = hashlib.sha256(), None
        if wanted.checksum.startswith("git:"):
            blob = hashlib.sha1(f"blob {wanted.n_bytes}\0".encode(), usedforsecurity=False)
        for part, future in zip(self._parts[name], fetched, strict=True):
            future.result()
            end = part.start + part.n_bytes
            for start in range(part.start, end, _READ_BYTES):
                piece = os.pread(self._fds[name], min(_READ_BYTES, end - start), start)
                sha256.update(piece)
                if blob is not None:
                    blob.update(piece)
        told = f"git:{blob.hexdigest()}" if blob is not None else f"sha256:{sha256.hexdigest()}"
        return sha256.hexdigest(), told


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def _allocate(fd: int, n_bytes: int) -> None:
    """Give the file its size, with the blocks where the file system can promise them."""
    if os.fstat(fd).st_size == n_bytes:
        return
    os.ftruncate(fd, n_bytes)
    if n_bytes:
        try:
            os.posix_fallocate(fd, 0, n_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _write_at(fd: int, piece: bytes, start: int) -> None:
    while piece:
        n_bytes = os.pwrite(fd, piece, start)
        piece, start = piece[n_bytes:], start + n_bytes


def _key(source: Source, files: Mapping[str, Wanted]) -> bytes:
    """Another one as soon as what is downloaded, or into what parts it is cut, differs."""
    told = [(name, wanted.n_bytes, wanted.checksum) for name, wanted in files.items()]
    text = json.dumps([source.uri, source.version, source.part_bytes, told])
    return hashlib.sha256(text.encode()).digest()
