"""What a configuration may name as a checkpoint, and folders of this machine."""

import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.domain.units import KIB
from serve_app.store import safetensors_header
from serve_app.store.inspect import inspect_checkpoint
from serve_app.store.safetensors_header import read_header
from serve_app.store.source import LocalSource, Source, open_source
from tests.fakes.checkpoints import PLAIN, write_checkpoint, write_safetensors


class Recording(LocalSource):
    """A folder that remembers what was read of it."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reads = []

    def _stream(self, name, start, length):
        self.reads.append((name, start, length))
        return super()._stream(name, start, length)


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/"])
def test_a_folder(tmp_path, form):
    uri = form.format(write_checkpoint(tmp_path, PLAIN))
    source = open_source(uri)
    assert source.uri == uri
    assert set(source.sizes) == {"config.json", "model.safetensors"}
    assert inspect_checkpoint(source).uri == uri


def test_a_built_variant(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
    write_checkpoint(tmp_path / "reference" / "gptq", PLAIN)
    assert "config.json" in open_source("reference://gptq").sizes
    with pytest.raises(CheckpointError, match="quantile reference build --only awq"):
        open_source("reference://awq")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("/nowhere/at/all", "is not a checkpoint: need a folder"),
        ("file:///nowhere", "is not a checkpoint: need a folder"),
        ("gs://bucket/model", "cannot open 'gs://bucket/model'"),
        ("s3://", "names no bucket: need s3://bucket/prefix"),
        ("s3:///prefix", "names no bucket: need s3://bucket/prefix"),
        ("hf://llama", "need hf://owner/name"),
        ("hf://datasets/owner/name", "is a dataset"),
        ("hf://owner/name@", "need hf://owner/name"),
    ],
)
def test_what_is_no_checkpoint(uri, said):
    with pytest.raises(CheckpointError) as caught:
        open_source(uri)
    assert said in str(caught.value)


def test_a_gguf_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"m\.gguf is missing"):
        inspect_checkpoint(open_source(f"{tmp_path}/m.gguf"))


def test_files_of_inner_folders_do_not_count(tmp_path):
    write_checkpoint(tmp_path, PLAIN)
    write_checkpoint(tmp_path / "original", PLAIN)
    assert (
        inspect_checkpoint(tmp_path).weight_bytes
        == inspect_checkpoint(tmp_path / "original").weight_bytes
    )


class TestReading:
    """Ranges, as every source keeps them."""

    @pytest.fixture
    def source(self, tmp_path) -> Source:
        (tmp_path / "a").write_bytes(b"0123456789")
        (tmp_path / "empty").write_bytes(b"")
        return LocalSource(tmp_path)

    @pytest.mark.parametrize(
        ("start", "length", "read"),
        [
            (0, 3, b"012"),
            (8, 5, b"89"),
            (10, 1, b""),
            (12, 9, b""),
            (3, 0, b""),
            (0, 10, b"0123456789"),
        ],
    )
    def test_parts(self, source, start, length, read):
        assert source.read("a", start, length) == read

    def test_an_empty_file(self, source):
        assert source.read("empty", 0, 100) == b""

    def test_a_file_that_is_not_there(self, source):
        with pytest.raises(CheckpointError, match="/b is missing"):
            source.read("b", 0, 1)

    def test_a_file_that_shrank_after_it_was_listed(self, source, tmp_path):
        assert source.sizes["a"] == 10
        (tmp_path / "a").write_bytes(b"01")
        with pytest.raises(CheckpointError, match="gave 2 bytes where 10 were asked for"):
            source.read("a", 0, 10)

    def test_a_file_that_vanished_after_it_was_listed(self, source, tmp_path):
        assert source.sizes["a"] == 10
        (tmp_path / "a").unlink()
        with pytest.raises(CheckpointError, match=r"cannot read .*/a"):
            source.read("a", 0, 10)


class TestSafetensorsHeaders:
    """One read per file, or two."""

    def test_a_header_that_the_first_read_holds(self, tmp_path):
        write_safetensors(tmp_path / "m.safetensors", {"big": ("BF16", [1024, 1024])})
        source = Recording(tmp_path)
        assert read_header(source, "m.safetensors")["big"].n_bytes == 2 * 1024 * KIB
        assert source.reads == [("m.safetensors", 0, safetensors_header.FIRST_READ_BYTES)]

    def test_a_header_that_is_longer_takes_one_more_read(self, tmp_path):
        tensors = {f"layers.{n}.{'x' * 100}": ("BF16", [64]) for n in range(1000)}
        write_safetensors(tmp_path / "m.safetensors", tensors)
        source = Recording(tmp_path)
        assert list(read_header(source, "m.safetensors")) == list(tensors)
        first, second = source.reads
        assert first == ("m.safetensors", 0, safetensors_header.FIRST_READ_BYTES)
        data_bytes = 1000 * 64 * 2
        assert sum(first[2:] + second[2:]) == source.sizes["m.safetensors"] - data_bytes
        assert second[1] == first[2]
