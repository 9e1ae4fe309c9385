"""Our reader of GGUF headers against files by the writer of the `gguf` package."""

import contextlib
import struct

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.errors import CheckpointError
from serve_app.domain.units import MIB
from serve_app.store import gguf_header
from serve_app.store.ggml_types import GGML_TYPES, nominal_bits
from serve_app.store.gguf_header import LongArray, read_gguf_header
from serve_app.store.source import LocalSource
from tests.fakes.gguf_files import Q4_K_M, n_bytes, write_gguf


class Recording(LocalSource):
    """A folder that remembers what was read of it."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reads = []

    def _stream(self, name, start, length):
        self.reads.append((start, length))
        return super()._stream(name, start, length)


def read(path):
    return read_gguf_header(LocalSource(path.parent), path.name)


def refused(path, *said):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    for part in (str(path), *said):
        assert part in str(caught.value)


def test_the_types_are_those_of_the_gguf_package():
    theirs = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    }
    assert theirs == GGML_TYPES


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("Q4_K", 4), ("IQ2_XXS", 2), ("Q8_0", 8), ("BF16", 16), ("F32", 32), ("MXFP4", 4)],
)
def test_the_width_in_a_types_name(dtype, bits):
    assert nominal_bits(dtype) == bits


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_with_their_type_shape_and_bytes(tmp_path, version):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(b"GGUF" + struct.pack("<I", version) + path.read_bytes()[8:])
    tensors = read(path).tensors
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == Q4_K_M
    assert {name: t.n_bytes for name, t in tensors.items()} == {
        name: n_bytes(*info) for name, info in Q4_K_M.items()
    }


def test_every_type_of_tensor(tmp_path):
    shapes = {f"t.{name}": (name, (3, 2, 256)) for name, _, _ in GGML_TYPES.values()}
    path = write_gguf(tmp_path / "m.gguf", shapes)
    tensors = read(path).tensors
    theirs = {t.name: (t.tensor_type.name, t.n_bytes) for t in gguf.GGUFReader(path).tensors}
    assert {name: (t.dtype, t.n_bytes) for name, t in tensors.items()} == theirs
    assert {t.shape for t in tensors.values()} == {(3, 2, 256)}


def test_every_type_of_metadata(tmp_path):
    written = {
        "uint8": 200,
        "int8": -100,
        "uint16": 60_000,
        "int16": -30_000,
        "uint32": 4_000_000_000,
        "int32": -2_000_000_000,
        "uint64": 2**63,
        "int64": -(2**62),
        "float32": 0.5,
        "float64": 0.1,
        "bool": True,
        "string": "größer",
    }
    arrays = {"a.int": [1, 2, 3], "a.bool": [True, False], "a.text": ["x", "yz", ""]}
    nested = {"a.nested": [[1, 2], [3]]}
    plain = {f"k.{kind}": (kind, value) for kind, value in written.items()}
    path = write_gguf(tmp_path / "m.gguf", plain={**plain, **arrays, **nested})
    metadata = read(path).metadata
    assert {key: metadata[f"k.{key}"] for key in written} == written
    assert {key: metadata[key] for key in (*arrays, *nested)} == {**arrays, **nested}
    assert metadata["general.architecture"] == "llama"


def test_long_arrays_are_passed_over(tmp_path):
    tokens = [f"token {number}" for number in range(5000)]
    plain = {"tokenizer.ggml.tokens": tokens, "k.numbers": list(range(5000)), "k.last": "here"}
    metadata = read(write_gguf(tmp_path / "m.gguf", plain=plain)).metadata
    assert metadata["tokenizer.ggml.tokens"] == metadata["k.numbers"] == LongArray(5000)
    assert metadata["k.last"] == "here"


def test_no_more_is_read_than_the_header_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "FIRST_READ_BYTES", 1000)
    tokens = {"tokenizer.ggml.tokens": [f"token {number}" for number in range(300)]}
    path = write_gguf(tmp_path / "m.gguf", plain=tokens)
    source = Recording(tmp_path)
    whole = read_gguf_header(source, path.name)
    assert list(whole.tensors) == list(Q4_K_M)
    assert source.reads[:3] == [(0, 1000), (1000, 1000), (2000, 2000)]
    header_bytes = gguf.GGUFReader(path).data_offset
    assert header_bytes <= sum(length for _, length in source.reads) < 2 * header_bytes
    assert header_bytes < path.stat().st_size / 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    arrays = {"k.list": [1, 2, 3], "k.names": ["a", "b"], "k.nested": [[1], [2]]}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", plain=arrays)


@given(data=st.data())
def test_whatever_is_damaged_is_read_or_refused(whole, data):
    raw = bytearray(whole.read_bytes())
    header_bytes = gguf.GGUFReader(whole).data_offset
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    damaged = whole.with_name("damaged.gguf")
    damaged.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(CheckpointError):
        read(damaged)


@pytest.mark.parametrize("kept", [3, 4, 7, 20, 23, 24, 60, 300, 640])
def test_a_file_that_ends_inside_its_header(tmp_path, kept):
    path = write_gguf(tmp_path / "m.gguf")
    assert gguf.GGUFReader(path).data_offset > kept
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "cut short", "copy it again")


def test_a_file_whose_last_tensor_lacks_a_byte(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"t": ("F32", (8,))})
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    refused(path, f"has {len(raw) - 1}", "cut short")


def test_a_file_of_another_format(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"<!doctype html><title>Sign in</title>")
    refused(path, "is not a GGUF file")


@pytest.mark.parametrize(
    ("version", "said"), [(1, "is GGUF 1"), (4, "is GGUF 4"), (3 << 24, "big-endian")]
)
def test_a_version_that_we_do_not_read(tmp_path, version, said):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(b"GGUF" + struct.pack("<I", version) + path.read_bytes()[8:])
    refused(path, said, "convert")


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(n_tensors=0, n_keys=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def tensor(name="t", dimensions=(256,), kind=0):
    packed = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, 0)
    return text(name) + packed


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (header(n_keys=1, rest=text("k") + struct.pack("<I", 13)), "value of type 13"),
        (header(n_keys=1, rest=struct.pack("<Q", 2**60)), "cut short or damaged"),
        (
            header(n_keys=1, rest=text("k") + struct.pack("<IIQ", 9, 4, 2**60)),
            "cut short or damaged",
        ),
        (
            header(n_keys=1, rest=text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9),
            "value of type 9",
        ),
        (header(n_tensors=2**40, rest=b"\0" * 99), "damaged"),
        (header(1, 0, tensor(dimensions=(1,) * 5)), "5 dimensions"),
        (header(1, 0, tensor(kind=4)), "ggml type 4, which QuanTile does not know"),
        (header(1, 0, tensor(dimensions=(100,), kind=12)), "rows of 100, no multiple of 256"),
        (header(2, 0, tensor() + tensor()), "two tensors 't'"),
        (
            header(0, 1, text("general.alignment") + struct.pack("<II", 4, 0)),
            "alignment 0",
        ),
    ],
)
def test_a_damaged_header(tmp_path, raw, said):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    refused(path, said)


def test_a_length_that_would_have_us_read_the_weights(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(header(n_keys=1, rest=struct.pack("<Q", 300 * MIB)))
    with path.open("r+b") as file:
        file.truncate(10**12)
    refused(path, "damaged header", "longer than")
