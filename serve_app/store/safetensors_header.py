"""Read what a safetensors file holds without reading its tensors.

Format: 8 bytes little-endian length, then that many bytes of JSON: name -> {dtype, shape,
data_offsets}. Source: github.com/huggingface/safetensors, README.
"""

import struct

import msgspec

from serve_app.domain.errors import CheckpointError
from serve_app.domain.tensors import TensorInfo
from serve_app.domain.units import KIB, MIB
from serve_app.store.source import Source

FIRST_READ_BYTES = 128 * KIB
"""Holds the whole header of nearly every file, so that one request is enough: 97 % of those on the
Hub are below 100 kB (huggingface_hub, `parse_safetensors_file_metadata`)."""
_MAX_HEADER_BYTES = 100 * MIB  # the format's own limit


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(source: Source, name: str) -> dict[str, TensorInfo]:
    """The tensors of one file. Raises CheckpointError when it is cut short or not the format."""
    path, size = source.locate(name), source.size(name)
    first = source.read(name, 0, FIRST_READ_BYTES)
    if len(first) < 8:
        raise CheckpointError(f"{path} has {size} bytes: not a safetensors file")
    (length,) = struct.unpack_from("<Q", first)
    if length > min(_MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path} announces a header of {length} bytes and has {size} in all: "
            "not a safetensors file, or cut short; copy it again"
        )
    raw = first[8 : 8 + length]
    if len(raw) < length:
        raw += source.read(name, len(first), length - len(raw))
    entries = _entries(path, raw)
    end = 8 + length + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if end != size:
        raise CheckpointError(
            f"{path} should have {end} bytes by its header and has {size}: cut short or damaged; "
            "copy it again"
        )
    return {
        name: TensorInfo(
            entry.dtype, tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0]
        )
        for name, entry in entries.items()
    }


def _entries(path: str, raw: bytes) -> dict[str, _Entry]:
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        fields.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(item, type=_Entry) for name, item in fields.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); copy it again") from None
    for name, entry in entries.items():
        start, end = entry.data_offsets
        if not 0 <= start <= end:
            raise CheckpointError(
                f"{path} has a damaged header ({name!r} lies at {start}..{end}); copy it again"
            )
    return entries
