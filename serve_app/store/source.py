"""Where a checkpoint's files are, and how to read parts of them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.errors import CheckpointError, UnreachableError
from serve_app.domain.units import KIB, MIB
from serve_app.reference.locate import SCHEME as REFERENCE
from serve_app.reference.locate import resolve

FILE = "file://"
S3 = "s3://"
HUB = "hf://"
GGUF_SUFFIX = ".gguf"
PIECE_BYTES = 256 * KIB
"""What is handed on at once while a file streams."""
GGUF_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Source(ABC):
    """The files of one folder, wherever it is: listed once, read in parts, never written.

    Several threads may read at once.
    """

    part_bytes = 16 * MIB
    """What one request of a download asks for, at most."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The bytes of each file by name; files of inner folders are left out.

        Raises CheckpointError, as `read` does, when the place cannot be reached, does not exist or
        may not be read; the message says what to change.
        """
        return self._list()

    @property
    def checksums(self) -> Mapping[str, str]:
        """What the place says of its files: `sha256:<hex>`, or `git:<hex>` of a git blob."""
        return {}

    @property
    def version(self) -> str:
        """Another text as soon as what the place holds differs, as far as it can be told."""
        return ""

    def read(self, name: str, start: int, length: int) -> bytes:
        """The `length` bytes from `start`; fewer only where the file ends before."""
        return b"".join(self.stream(name, start, length))

    def stream(self, name: str, start: int, length: int) -> Iterator[bytes]:
        """The same bytes piece by piece, as they come, each of at most `PIECE_BYTES`.

        Raises UnreachableError, after the pieces that came, where a try for the rest may help.
        """
        length = min(length, self.size(name) - start)
        got = 0
        if length <= 0:
            return
        with closing(self._stream(name, start, length)) as pieces:
            for piece in pieces:
                got += len(piece)
                yield piece
        if got != length:
            raise UnreachableError(
                f"{self.locate(name)} gave {got} bytes where {length} were asked for: it "
                "changed meanwhile, or the connection broke; try again"
            )

    def size(self, name: str) -> int:
        """The bytes of one file. Raises CheckpointError when there is none of that name."""
        if name not in self.sizes:
            raise CheckpointError(f"{self.locate(name)} is missing; check the checkpoint's path")
        return self.sizes[name]

    def read_json(self, name: str) -> dict[str, Any]:
        """A file that holds one JSON object. Raises CheckpointError."""
        raw = self.read(name, 0, self.size(name))
        try:
            return msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.locate(name)} is not valid JSON: {error}") from None

    def locate(self, name: str) -> str:
        """A file's full name, for messages."""
        return f"{self.uri.rstrip('/')}/{name}"

    @abstractmethod
    def _list(self) -> Mapping[str, int]: ...

    @abstractmethod
    def _stream(self, name: str, start: int, length: int) -> Generator[bytes, None, None]:
        """Called with a range that lies in the file as it was listed; never gives more of it."""


class LocalSource(Source):
    """A folder of this machine. One that does not exist has no files."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        super().__init__(uri or str(folder))
        self._folder = folder

    def locate(self, name: str) -> str:
        """The path."""
        return str(self._folder / name)

    def _list(self) -> Mapping[str, int]:
        try:
            if not self._folder.is_dir():
                return {}
            return {
                path.name: path.stat().st_size for path in self._folder.iterdir() if path.is_file()
            }
        except OSError as error:
            raise CheckpointError(f"cannot list {self._folder}: {error}") from None

    def _stream(self, name: str, start: int, length: int) -> Generator[bytes, None, None]:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(start)
                while length and (piece := file.read(min(length, PIECE_BYTES))):
                    length -= len(piece)
                    yield piece
        except OSError as error:
            raise CheckpointError(f"cannot read {self.locate(name)}: {error}") from None


class GgufFile(Source):
    """One GGUF file of a folder, with its other parts where it is split into several."""

    def __init__(self, folder: Source, name: str, uri: str) -> None:
        super().__init__(uri)
        self._folder = folder
        self._name = name

    def locate(self, name: str) -> str:
        """As the folder says."""
        return self._folder.locate(name)

    def _list(self) -> Mapping[str, int]:
        stem = shard_stem(self._name)
        sizes = self._folder.sizes
        parts = {name: size for name, size in sizes.items() if stem and shard_stem(name) == stem}
        return parts or {self._name: self._folder.size(self._name)}

    @property
    def checksums(self) -> Mapping[str, str]:
        """As the folder says."""
        return self._folder.checksums

    @property
    def version(self) -> str:
        """Of the folder."""
        return self._folder.version

    def _stream(self, name: str, start: int, length: int) -> Generator[bytes, None, None]:
        yield from self._folder.stream(name, start, length)


def shard_stem(name: str) -> str | None:
    """`m-Q4_K_M` of `m-Q4_K_M-00001-of-00003.gguf`; None for a file that is not one of several."""
    match = GGUF_SHARD.fullmatch(name)
    return match["stem"] if match else None


def open_source(uri: str) -> Source:
    """The checkpoint that a configuration names, without reading anything of it yet.

    A folder, `file://`, `reference://<variant>`, `s3://bucket/prefix[@digest]` or
    `hf://owner/name[@revision][/folder]`; each but `reference://` may also end in the name of a
    GGUF file. Raises CheckpointError for anything else.
    """
    folder, slash, name = uri.rpartition("/")
    named_file = name.endswith(GGUF_SUFFIX) and not (uri.startswith(HUB) and uri.count("/") < 4)
    if "://" not in uri or uri.startswith(FILE):
        path = Path(uri.removeprefix(FILE)).expanduser()
        if named_file and not path.is_dir():
            return GgufFile(LocalSource(path.parent), name, uri)
        if not path.is_dir():
            raise CheckpointError(
                f"{uri!r} is not a checkpoint: need a folder, or a .gguf file; check the path, or "
                "give reference://<variant>, s3://bucket/prefix or hf://owner/name"
            )
        return LocalSource(path, uri)
    if uri.startswith(REFERENCE):
        return LocalSource(resolve(uri), uri)
    for scheme, opener in _REMOTE.items():
        if uri.startswith(scheme):
            return GgufFile(opener(folder + slash), name, uri) if named_file else opener(uri)
    raise CheckpointError(
        f"cannot open {uri!r}: need a folder, reference://<variant>, s3://bucket/prefix or "
        "hf://owner/name[@revision]"
    )


def _open_s3(uri: str) -> Source:
    from serve_app.store.s3 import S3Source

    return S3Source(uri)


def _open_hub(uri: str) -> Source:
    from serve_app.store.hub import HubSource

    return HubSource(uri)


_REMOTE: dict[str, Callable[[str], Source]] = {S3: _open_s3, HUB: _open_hub}
