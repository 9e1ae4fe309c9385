"""What a checkpoint really is: found from headers, compared with what it is declared to be."""

import json
import struct

import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod
from serve_app.store.inspect import inspect_checkpoint
from tests.fakes import checkpoints as made
from tests.fakes.checkpoints import LINEAR, weights, write_checkpoint, write_safetensors

FORMATS = {
    "bf16": (made.PLAIN, None, "unquantized", 16, "unquantized bfloat16"),
    "fp16": (
        {name: ("F16", shape) for name, (_, shape) in made.PLAIN.items()},
        None,
        "unquantized",
        16,
        "unquantized float16",
    ),
    "native gptq": (made.NATIVE_PACKED, made.GPTQ, "gptq", 4, "gptq W4A16 g128 (gptq)"),
    "native awq": (made.NATIVE_PACKED, made.AWQ, "awq", 4, "awq W4A16 g64 asym (awq)"),
    "ct w4": (made.PACKED, made.CT_W4, "gptq", 4, "gptq W4A16 g128 (compressed-tensors)"),
    "ct w4 asym": (
        made.PACKED,
        made.CT_W4_ASYM,
        "awq",
        4,
        "awq W4A16 g128 asym (compressed-tensors)",
    ),
    "ct w8a8": (made.INT8, made.CT_W8A8, "int8_w8a8", 8, "int8_w8a8 W8A8 (compressed-tensors)"),
    "ct w8a16": (
        made.PACKED,
        made.compressed({"weights": weights(8)}),
        "gptq",
        8,
        "gptq W8A16 (compressed-tensors)",
    ),
    "ct fp8": (made.FLOAT8, made.CT_FP8, "fp8", 8, "fp8 W8A8 (compressed-tensors)"),
    "native fp8": (made.FLOAT8, {"quant_method": "fp8"}, "fp8", 8, "fp8 W8A8 (fp8)"),
    "ct mixed": (made.PACKED, made.CT_MIXED, "mixed", 8, "mixed W8A16 (compressed-tensors)"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_recognized(tmp_path, name):
    tensors, quantization, method, bits, described = FORMATS[name]
    checkpoint = inspect_checkpoint(write_checkpoint(tmp_path, tensors, quantization))
    assert checkpoint.describe() == described
    assert (checkpoint.scheme.method, checkpoint.scheme.bits) == (method, bits)
    assert checkpoint.context_length == 2048
    data = (tmp_path / "model.safetensors").read_bytes()
    assert checkpoint.weight_bytes == len(data) - 8 - struct.unpack("<Q", data[:8])[0]
    checkpoint.require_method(QuantMethod(method))


@pytest.mark.parametrize(
    ("name", "declared", "said"),
    [
        ("bf16", "gptq", "declares gptq, but the checkpoint is unquantized bfloat16"),
        ("fp16", "awq", "declares awq, but the checkpoint is unquantized float16"),
        ("native gptq", "awq", "declares awq, but the checkpoint is gptq W4A16 g128 (gptq)"),
        ("native awq", "gptq", "declares gptq, but the checkpoint is awq W4A16 g64 asym (awq)"),
        ("ct w4", "unquantized", "declares unquantized, but the checkpoint is gptq W4A16 g128"),
        ("ct w8a8", "fp8", "declares fp8, but the checkpoint is int8_w8a8 W8A8"),
        ("ct w8a16", "int8_w8a8", "declares int8_w8a8, but the checkpoint is gptq W8A16"),
        ("ct fp8", "int8_w8a8", "declares int8_w8a8, but the checkpoint is fp8 W8A8"),
        ("ct mixed", "gptq", "declares gptq, but the checkpoint is mixed W8A16"),
    ],
)
def test_another_method_than_declared_is_refused(tmp_path, name, declared, said):
    tensors, quantization, method, *_ = FORMATS[name]
    checkpoint = inspect_checkpoint(write_checkpoint(tmp_path, tensors, quantization), "s3://x/y")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.require_method(QuantMethod(declared))
    assert str(caught.value).startswith(said)
    assert "s3://x/y" in str(caught.value)
    assert f"Declare `method: {method}`" in str(caught.value)


@pytest.mark.parametrize("declared", ["gptq", "awq"])
def test_a_container_that_does_not_tell_gptq_from_awq_may_be_declared_either(tmp_path, declared):
    checkpoint = inspect_checkpoint(write_checkpoint(tmp_path, made.PACKED, made.CT_W4))
    checkpoint.require_method(QuantMethod(declared))


class TestRecord:
    """`quantile.json`, our own record beside the weights."""

    def inspect(self, folder, tensors, quantization, record):
        write_checkpoint(folder, tensors, quantization)
        (folder / "quantile.json").write_text(json.dumps(record))
        return inspect_checkpoint(folder)

    def test_it_tells_what_the_container_cannot(self, tmp_path):
        checkpoint = self.inspect(tmp_path, made.PACKED, made.CT_W4, {"method": "awq"})
        assert checkpoint.describe() == "awq W4A16 g128 (compressed-tensors)"
        with pytest.raises(CheckpointError, match="declares gptq, but the checkpoint is awq"):
            checkpoint.require_method(QuantMethod.GPTQ)

    @pytest.mark.parametrize(
        ("name", "recorded"),
        [("bf16", "gptq"), ("ct w4", "unquantized"), ("ct w8a8", "fp8"), ("native gptq", "awq")],
    )
    def test_it_must_agree_with_the_tensors(self, tmp_path, name, recorded):
        tensors, quantization, method, *_ = FORMATS[name]
        with pytest.raises(CheckpointError) as caught:
            self.inspect(tmp_path, tensors, quantization, {"method": recorded})
        for part in (f"quantile.json says {recorded}", method, "build the checkpoint again"):
            assert part in str(caught.value)

    @pytest.mark.parametrize("record", [{"method": "int4"}, {}, {"method": None}])
    def test_a_method_that_nobody_knows_is_refused_with_the_known_ones(self, tmp_path, record):
        with pytest.raises(CheckpointError, match="known: unquantized, int8_w8a8, gptq"):
            self.inspect(tmp_path, made.PLAIN, None, record)


@pytest.mark.parametrize(
    "tensors", [made.NATIVE_PACKED, made.PACKED, made.INT8, made.FLOAT8], ids=range(4)
)
def test_quantized_tensors_without_a_configuration_are_not_unquantized(tmp_path, tensors):
    with pytest.raises(CheckpointError, match="restore the configuration") as caught:
        inspect_checkpoint(write_checkpoint(tmp_path, tensors))
    assert LINEAR in str(caught.value)


@pytest.mark.parametrize("quantization", [made.GPTQ, made.AWQ, made.CT_W4, made.CT_FP8])
def test_a_configuration_without_quantized_tensors_is_not_quantized(tmp_path, quantization):
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(write_checkpoint(tmp_path, made.PLAIN, quantization))
    for part in ("config.json", quantization["quant_method"], "bfloat16"):
        assert part in str(caught.value)


def test_the_older_place_of_gptqs_configuration(tmp_path):
    write_checkpoint(tmp_path, made.NATIVE_PACKED)
    side_file = {"bits": 4, "group_size": -1, "sym": False}
    (tmp_path / "quantize_config.json").write_text(json.dumps(side_file))
    assert inspect_checkpoint(tmp_path).describe() == "gptq W4A16 asym (gptq)"


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "known: gptq, awq, fp8, compressed-tensors"),
        (made.compressed(), "without config_groups"),
        ({"quant_method": "gptq"}, "'bits'"),
        ({"quant_method": "gptq", "bits": "four"}, "four"),
        (made.compressed({"targets": ["Linear"]}), "'weights'"),
        ({"quant_method": "compressed-tensors", "config_groups": ["Linear"]}, "values"),
        ("int4", "'int4'"),
        (made.compressed({"weights": weights(4, type="float", group_size=16)}), "float4 weights"),
    ],
)
def test_a_quantization_that_is_unknown_or_garbled_is_refused(tmp_path, quantization, said):
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(write_checkpoint(tmp_path, made.PACKED, quantization))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


class TestDamage:
    """Folders that a broken copy leaves behind."""

    def refused(self, folder, *said):
        with pytest.raises(CheckpointError) as caught:
            inspect_checkpoint(folder)
        for part in said:
            assert part in str(caught.value)

    def test_no_configuration(self, tmp_path):
        write_checkpoint(tmp_path, made.PLAIN)
        (tmp_path / "config.json").unlink()
        self.refused(tmp_path, "config.json is missing")
        self.refused(tmp_path / "nowhere", "config.json is missing")

    @pytest.mark.parametrize("content", ["{", "[]", "", "\xff", '{"a": "\xff"}'])
    def test_a_configuration_that_is_no_json_object(self, tmp_path, content):
        write_checkpoint(tmp_path, made.PLAIN)
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
        self.refused(tmp_path, "config.json is not valid JSON")

    def test_a_configuration_without_a_context_length(self, tmp_path):
        write_checkpoint(tmp_path, made.PLAIN, max_position_embeddings=None)
        assert inspect_checkpoint(tmp_path).context_length == 0

    def test_no_weights(self, tmp_path):
        write_checkpoint(tmp_path, made.PLAIN)
        (tmp_path / "model.safetensors").rename(tmp_path / "model.safetensors.part")
        self.refused(tmp_path, "lacks any .safetensors file")

    def test_a_shard_that_the_index_names_is_missing(self, tmp_path):
        write_checkpoint(tmp_path, made.PLAIN)
        names = ["model-1.safetensors", "model-2.safetensors", "model-3.safetensors"]
        for name in (names[0], names[2]):
            write_safetensors(tmp_path / name, {name: ("BF16", [4])})
        (tmp_path / "model.safetensors").unlink()
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
        self.refused(tmp_path, "lacks model-2.safetensors")
        write_safetensors(tmp_path / names[1], {names[1]: ("BF16", [4])})
        assert inspect_checkpoint(tmp_path).weight_bytes == 3 * 4 * 2

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'])
    def test_an_index_that_is_no_index(self, tmp_path, content):
        write_checkpoint(tmp_path, made.PLAIN)
        (tmp_path / "model.safetensors.index.json").write_text(content)
        self.refused(tmp_path, "model.safetensors.index.json", "weight_map")

    @pytest.mark.parametrize("kept", [0, 7, 8, 50, -1], ids="{} bytes".format)
    def test_a_file_that_was_cut_short(self, tmp_path, kept):
        file = write_checkpoint(tmp_path, made.PLAIN) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        self.refused(tmp_path, str(file), "safetensors" if 0 <= kept < 8 else "cut short")

    def test_a_file_with_something_behind_its_end(self, tmp_path):
        file = write_checkpoint(tmp_path, made.PLAIN) / "model.safetensors"
        file.write_bytes(file.read_bytes() + b"\0")
        self.refused(tmp_path, "should have", "copy it again")

    @pytest.mark.parametrize(
        "header",
        [
            b"{",
            b"\xff\xff",
            b'{"\xff": {}}',
            b"[]",
            b'{"a": 1}',
            b'{"a": {"dtype": "BF16"}}',
            b'{"a": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 0]}}',
            b'{"a": {"dtype": "BF16", "shape": [1], "data_offsets": [-2, 0]}}',
        ],
    )
    def test_a_damaged_header(self, tmp_path, header):
        file = write_checkpoint(tmp_path, made.PLAIN) / "model.safetensors"
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        self.refused(tmp_path, str(file), "damaged", "copy it again")

    def test_a_page_of_html_in_place_of_weights(self, tmp_path):
        file = write_checkpoint(tmp_path, made.PLAIN) / "model.safetensors"
        file.write_bytes(b"<!doctype html><title>Sign in</title>")
        self.refused(tmp_path, str(file), "not a safetensors file")
