"""How far each part of a download has come, in a file that outlives the process.

A header, then one 64-bit count of bytes per part. A count is written after the bytes that it
counts, and both are in the kernel's page cache from then on: SIGKILL costs what was on the wire. A
machine that loses power may keep a count and lose the bytes; the file's SHA-256 then says so.
"""

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_MAGIC = b"quantile-parts-1"
_COUNT = struct.Struct("<Q")


class Journal:
    """`with Journal(path, key, lengths) as journal`: `journal.done[i]` bytes of part i are there.

    `key` (32 bytes) is what is downloaded: a journal of something else is begun anew. `lengths` are
    the bytes of each part. Several threads may mark, each its own parts. Raises OSError.
    """

    def __init__(self, path: Path, key: bytes, lengths: list[int]) -> None:
        self._lengths = lengths
        self._offset = len(_MAGIC) + len(key)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = self._offset + _COUNT.size * len(lengths)
        raw = os.pread(self._fd, size, 0)
        header = _MAGIC + key
        self.is_resumed = len(raw) == size and raw.startswith(header)
        if not self.is_resumed:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, header + bytes(size - self._offset), 0)
            raw = bytes(size)
        counts = (_COUNT.unpack_from(raw, self._at(part))[0] for part in range(len(lengths)))
        self.done = [min(count, most) for count, most in zip(counts, lengths, strict=True)]

    def mark(self, part: int, n_bytes: int) -> None:
        """So many bytes of the part are in its file."""
        self.done[part] = n_bytes
        os.pwrite(self._fd, _COUNT.pack(n_bytes), self._at(part))

    def _at(self, part: int) -> int:
        return self._offset + _COUNT.size * part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
