"""Read what a GGUF file holds from its first bytes: metadata, and name, type and shape of tensors.

Format: github.com/ggml-org/ggml, docs/gguf.md. Written here because the reader of the `gguf`
package maps the whole file, takes 8 s and 740 MB for a vocabulary of 128,000 tokens, and does not
notice a header that lacks its last bytes; our tests hold this one against files by its writer.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.domain.errors import CheckpointError
from serve_app.domain.tensors import TensorInfo
from serve_app.domain.units import MIB
from serve_app.store.ggml_types import GGML_TYPES
from serve_app.store.source import Source

FIRST_READ_BYTES = MIB
"""Each further read doubles what is there: a header of 8 MiB, as of Llama 3, takes four."""
MAX_HEADER_BYTES = 256 * MIB
MAX_KEPT_ITEMS = 4096
"""Longer arrays (the vocabulary) are passed over: nothing here needs more than their length."""

_STRING, _ARRAY = 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4


@dataclass(frozen=True)
class LongArray:
    """An array of metadata whose items were passed over."""

    length: int


Scalar = int | float | bool | str
Value = Scalar | LongArray | list["Value"]


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, and the tensors in file order."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]


def read_gguf_header(source: Source, name: str) -> GgufHeader:
    """The header of one file, fetching no more of it than a power of two above the header's size.

    Raises CheckpointError when it is not GGUF version 2 or 3, damaged, or cut short.
    """
    reader = _Reader(source, name)
    if reader.take(4) != b"GGUF":
        raise CheckpointError(f"{reader.path} is not a GGUF file: copy it again")
    version = reader.scalar("I")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        raise CheckpointError(
            f"{reader.path} is GGUF {'for big-endian machines' if swapped else version}: need "
            "version 2 or 3, little-endian; convert the model again with a current llama.cpp"
        )
    n_tensors, n_keys = reader.scalar("Q"), reader.scalar("Q")
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for _ in range(n_tensors):
        tensor_name, tensor, offset = _tensor(reader)
        if tensor_name in tensors:
            raise reader.damaged(f"two tensors {tensor_name!r}")
        tensors[tensor_name] = tensor
        end = max(end, offset + tensor.n_bytes)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise reader.damaged(f"alignment {alignment!r}")
    needed = -(-reader.offset // alignment) * alignment + end
    if tensors and needed > reader.size:
        raise CheckpointError(
            f"{reader.path} should have at least {needed} bytes by its header and has "
            f"{reader.size}: cut short; copy it again"
        )
    return GgufHeader(metadata, tensors)


def _tensor(reader: "_Reader") -> tuple[str, TensorInfo, int]:
    """Name, description, and offset in the file's data."""
    name = reader.string()
    n_dimensions = reader.scalar("I")
    if n_dimensions > _MAX_DIMENSIONS:
        raise reader.damaged(f"{name!r} has {n_dimensions} dimensions")
    shape = [reader.scalar("Q") for _ in range(n_dimensions)]
    number, offset = reader.scalar("I"), reader.scalar("Q")
    if number not in GGML_TYPES:
        raise CheckpointError(
            f"{reader.path}: {name!r} has ggml type {number}, which QuanTile does not know; "
            "quantize the model to another type, or update QuanTile"
        )
    dtype, block, block_bytes = GGML_TYPES[number]
    row = shape[0] if shape else 1
    if row % block:
        raise reader.damaged(f"{name!r} of {dtype} has rows of {row}, no multiple of {block}")
    n_bytes = math.prod(shape) // block * block_bytes
    return name, TensorInfo(dtype, tuple(reversed(shape)), n_bytes), offset


class _Reader:
    """Values one after the other, fetching more of the file where needed."""

    def __init__(self, source: Source, name: str) -> None:
        self.path, self.size = source.locate(name), source.size(name)
        self.offset = 0
        self._source, self._name = source, name
        self._raw = bytearray()

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} has a damaged header ({what}); copy it again")

    def take(self, n_bytes: int) -> bytes:
        start = self._advance(n_bytes)
        return bytes(self._raw[start : start + n_bytes])

    def scalar(self, code: str) -> int:
        """One number; the codes are those of `struct`."""
        start = self._advance(struct.calcsize(code))
        (value,) = struct.unpack_from("<" + code, self._raw, start)
        return value  # type: ignore[no-any-return]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode(errors="replace")

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or depth == _MAX_NESTING:
            raise self.damaged(f"value of type {kind} at byte {self.offset}")
        inner, length = self.scalar("I"), self.scalar("Q")
        if length <= MAX_KEPT_ITEMS:
            return [self.value(inner, depth + 1) for _ in range(length)]
        self._skip(inner, length, depth + 1)
        return LongArray(length)

    def _skip(self, kind: int, count: int, depth: int) -> None:
        if kind in _SCALARS:
            self._advance(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self._advance(self.scalar("Q"))
        else:
            for _ in range(count):
                self.value(kind, depth)

    def _advance(self, n_bytes: int) -> int:
        """Step over so many bytes, which are there from now on; where they start."""
        start, end = self.offset, self.offset + n_bytes
        if end > self.size:
            raise CheckpointError(
                f"{self.path} ends inside its header ({end} of {self.size} bytes): cut short or "
                "damaged; copy it again"
            )
        if end > MAX_HEADER_BYTES:
            raise self.damaged(f"longer than {MAX_HEADER_BYTES} bytes")
        if end > len(self._raw):
            have = len(self._raw)
            wanted = max(FIRST_READ_BYTES, 2 * have, end) - have
            self._raw += self._source.read(self._name, have, wanted)
        self.offset = end
        return start
