"""A checkpoint in memory behind the interface of a source, with the faults of a network."""

import hashlib
import threading
from collections.abc import Callable, Generator, Mapping

from serve_app.domain.errors import UnreachableError
from serve_app.store.source import Source

Spoil = Callable[[str, int, bytes], bytes | None]


class MemorySource(Source):
    """`files` by name. `spoil(name, start, data)` gives what comes in place of a piece; None: the
    connection breaks there."""

    def __init__(self, files: Mapping[str, bytes], *, piece_bytes: int = 100) -> None:
        super().__init__("memory://m")
        self.files = dict(files)
        self.part_bytes = 1000
        self.spoil: Spoil = lambda name, start, data: data
        self.asked: list[tuple[str, int, int]] = []
        self.sent_bytes = 0
        self.most_at_once = 0
        self._at_once = 0
        self._piece_bytes = piece_bytes
        self._lock = threading.Lock()

    @property
    def checksums(self) -> Mapping[str, str]:
        return {n: f"sha256:{hashlib.sha256(d).hexdigest()}" for n, d in self.files.items()}

    def _list(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.files.items()}

    def _stream(self, name: str, start: int, length: int) -> Generator[bytes, None, None]:
        with self._lock:
            self.asked.append((name, start, length))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            for at in range(start, start + length, self._piece_bytes):
                data = self.files[name][at : min(at + self._piece_bytes, start + length)]
                spoilt = self.spoil(name, at, data)
                if spoilt is None:
                    raise UnreachableError("the connection broke; try again")
                with self._lock:
                    self.sent_bytes += len(spoilt)
                yield spoilt
        finally:
            with self._lock:
                self._at_once -= 1
