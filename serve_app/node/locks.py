"""A lock between processes that the kernel holds, so that it is gone with the process.

A POSIX record lock (`fcntl.lockf`), not `flock`: it belongs to the process, where a `flock` belongs
to the open file, which every forked child shares. An engine core forked while its replica holds a
`flock` would keep it after the replica is killed. The price: a process loses its record lock when
it closes *any* descriptor of the file, so all opening and closing goes through this module, which
knows what this process holds. The file stays behind; the lock does not.
"""

import errno
import fcntl
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

_FLOCK = struct.Struct("@hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""
_NOTE_BYTES = 4096

_guard = threading.Lock()
_held: dict[tuple[int, int, int], bytes] = {}
"""What this process holds: (pid, device, inode) to its note. A forked child holds none of it."""


@dataclass(frozen=True)
class LockHolder:
    """Who holds a lock, by the kernel's word, and the note that the holder left in the file."""

    pid: int
    note: bytes


class RecordLock:
    """An exclusive lock on a file, made if it is not there. Nothing here ever blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, note: bytes) -> bool:
        """Take the lock if it is free and leave `note` (at most 4 KiB) for those who wait.

        False if anybody holds it: another process, or another lock object of this one.
        """
        with _guard:
            if _key(self.path) in _held:
                return False
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)
                os.pwrite(fd, note, 0)
            except OSError as error:
                os.close(fd)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise
            self._fd = fd
            found = os.fstat(fd)
            _held[os.getpid(), found.st_dev, found.st_ino] = note
            return True

    def rename(self, path: Path) -> None:
        """Move the file; the lock stays on it."""
        self.path = self.path.rename(path)

    def release(self, *, unlink: bool = False) -> None:
        """Give the lock back, if it is held; `unlink` takes the file away first."""
        with _guard:
            if self._fd is None:
                return
            if unlink:
                self.path.unlink(missing_ok=True)
            found = os.fstat(self._fd)
            _held.pop((os.getpid(), found.st_dev, found.st_ino), None)
            os.close(self._fd)
            self._fd = None


def lock_holder(path: Path) -> LockHolder | None:
    """Who holds the lock on this file now; None if nobody does, or there is no such file."""
    with _guard:
        key = _key(path)
        if key in _held:
            return LockHolder(os.getpid(), _held[key])
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            query = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
            return None if kind == fcntl.F_UNLCK else LockHolder(pid, os.pread(fd, _NOTE_BYTES, 0))
        finally:
            os.close(fd)


def _key(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0, 0
    return os.getpid(), found.st_dev, found.st_ino
