"""Raw answers, one JSON object a line: written as they come, so that an evaluation can go on."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from serve_app.domain.errors import ConfigError


class RawFile:
    """The answers of one model to one set. `header` says to what: another one is refused.

    Lines with an `error` are kept as evidence, and asked again by the next run.
    """

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Raises ConfigError where the file holds answers to something else."""
        self.path = path
        self._header = dict(header)
        self._file: IO[bytes] | None = None
        if path.exists():
            self._repair()

    def __enter__(self) -> "RawFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        if self._file.tell() == 0:
            self.add({"header": self._header})
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, record: Mapping[str, object]) -> None:
        """Append, at once: a line is either whole or the last."""
        if self._file is None:
            raise ValueError("the file is not open")
        self._file.write(msgspec.json.encode(record) + b"\n")
        self._file.flush()

    def answered(self) -> set[int]:
        """Indices that need not be asked again."""
        return set(self.records())

    def records(self) -> dict[int, dict[str, Any]]:
        """The last answer to each index; those that failed are left out."""
        return {line["i"]: line for line in self._lines() if "i" in line and "error" not in line}

    def failures(self) -> dict[int, str]:
        """Indices that failed and were never answered, with the last error."""
        failed = {line["i"]: line["error"] for line in self._lines() if "error" in line}
        answered = self.answered() if failed else set()
        return {i: error for i, error in failed.items() if i not in answered}

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                yield msgspec.json.decode(line)

    def _repair(self) -> None:
        """Cut a last line that is not whole; refuse another header."""
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        if not whole:
            return
        try:
            found = next(self._lines()).get("header")
        except msgspec.DecodeError:
            found = None
        if found != self._header:
            raise ConfigError(
                f"{self.path} holds answers to another question: need {self._header}, have "
                f"{found}: give another --out, or remove the file"
            )
