"""Locks between processes of one node that the kernel holds, and frees when their holder dies.

`flock`, not the record lock of `node.locks`: it has a shared mode, holds between threads of one
process, and is inherited by a forked engine core, which reads the weights as its replica does. The
files stay behind: removing one would let two processes lock two files of one name.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """A lock on a file that is made where it is missing. Give it back with `release` or `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def try_exclusive(self) -> bool:
        """Take it alone; False where anybody has it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take it with others; False where somebody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def exclusive(self, wait: Callable[[], None]) -> Self:
        """Take it alone, and call `wait`, which sleeps, as long as anybody has it."""
        while not self.try_exclusive():
            wait()
        return self

    def shared(self, wait: Callable[[], None]) -> Self:
        """Take it with others, and call `wait` as long as somebody has it alone."""
        while not self.try_shared():
            wait()
        return self

    def release(self) -> None:
        """Give it back; nothing happens where it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            fcntl.flock(fd, fcntl.LOCK_UN)  # also where a forked child has the descriptor
            os.close(fd)

    def _try(self, kind: int) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        self._fd = fd
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
