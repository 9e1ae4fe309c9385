"""The JSONL log of mirrored requests: appended, rotated by size, and given up at the first failure.

Used from one thread off the event loop. Router replicas of one node may share the file: a line is
written under its lock, and to the file that has the name at that moment.
"""

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from serve_app.config.shadow import ShadowLogConfig

_MODE = 0o600  # prompts and answers may be in it

logger = logging.getLogger("ray.serve")


class ShadowLog:
    """Appends lines to the file of `config`. Never raises: a log that cannot be written ends."""

    def __init__(self, config: ShadowLogConfig) -> None:
        self.config = config
        self.failure: str | None = None
        """Why nothing is written any more."""
        self._path = Path(config.path)
        self._fd: int | None = None

    def write(self, line: bytes) -> bool:
        """Append one line, with its newline. False if it was not written."""
        if self.failure is not None:
            return False
        try:
            self._append(line)
        except OSError as error:
            self.failure = str(error)
            self.close()
            logger.warning(
                "the shadow log %s cannot be written (%s) and is off until the router gets another "
                "user_config; mirroring goes on",
                self._path,
                error,
            )
            return False
        return True

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.close(fd)
            except OSError as error:  # what a network file system could not store after all
                self.failure = self.failure or str(error)

    def _append(self, line: bytes) -> None:
        fd = self._locked()
        try:
            size = os.fstat(fd).st_size
            if size and size + len(line) > self.config.max_bytes:
                self._rotate()
                fd = self._locked()
                size = os.fstat(fd).st_size
            self._write_whole(fd, line, size)
        finally:
            if self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _write_whole(self, fd: int, line: bytes, size: int) -> None:
        """A disk that is full takes a part of a line: that part is taken back."""
        rest = line
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise

    def _locked(self) -> int:
        """The file that has the name now, locked by us."""
        while True:
            if self._fd is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, _MODE)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if self._has_the_name(self._fd):
                return self._fd
            self._release()  # another replica rotated it, or somebody moved it away

    def _has_the_name(self, fd: int) -> bool:
        try:
            named, held = self._path.stat(), os.fstat(fd)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def _release(self) -> None:
        self.close()  # and with it the lock

    def _rotate(self) -> None:
        """Move every file one up; the lock on the newest keeps the other replicas out."""
        keep = self.config.keep
        for number in range(keep, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        if not keep:
            self._path.unlink()
        self._release()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
