"""Weights as checkpoints hold them: read as their library reads them, written and read back."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.layouts import awq, bits, compressed_tensors, dequantize, gptq, plain
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.quantize.layouts.shards import INDEX, write_tensors
from tests.fakes.linear_layers import write_checkpoint

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
examples = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packed(name: str = UP, n: int = 32, k: int = 64, **more) -> dict:
    """A layer of packed 4-bit integers, in groups of 32 unless said otherwise."""
    defaults = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}
    return {"name": name, "n": n, "k": k, "format": "pack-quantized", **defaults, **more}


def same(have: dict, need: dict) -> None:
    assert have.keys() == need.keys()
    for name, tensor in need.items():
        assert have[name].dtype == torch.float32
        assert torch.equal(have[name], tensor), name


@given(st.data(), st.integers(2, 8), st.integers(1, 4), st.integers(1, 100))
@examples
def test_packed_bits_are_one_stream_per_row(data, width, rows, count):
    values = data.draw(
        st.lists(
            st.lists(st.integers(0, (1 << width) - 1), min_size=count, max_size=count),
            min_size=rows,
            max_size=rows,
        )
    )
    words = bits.pack(torch.tensor(values, dtype=torch.uint8), width)
    assert words.dtype == torch.int32
    for row, have in zip(values, words.tolist(), strict=True):
        stream = sum(value << (i * width) for i, value in enumerate(row))
        need = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(math.ceil(count * width / 32))]
        assert [word & 0xFFFFFFFF for word in have] == need
    assert bits.unpack(words, width, count).tolist() == values


def test_a_wrong_number_of_words_is_refused():
    with pytest.raises(ValueError, match="3 words do not hold 32 values of 4 bits"):
        bits.unpack(torch.zeros(2, 3, dtype=torch.int32), 4, 32)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "per",
    [
        {"strategy": "group", "group_size": 32},
        {"strategy": "channel", "group_size": None},
        {"strategy": "tensor", "group_size": None},
    ],
    ids=["group", "channel", "tensor"],
)
def test_packed_integers_are_what_their_library_reads(tmp_path, num_bits, symmetric, per):
    made = write_checkpoint(tmp_path, packed(num_bits=num_bits, symmetric=symmetric, **per))
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
UNPACKED = [
    {"num_bits": 8, "strategy": "channel", "format": "int-quantized", "activations": TOKEN},
    {"num_bits": 8, "strategy": "tensor", "format": "int-quantized", "activations": TOKEN},
    {"num_bits": 8, "strategy": "channel", "format": "naive-quantized", "symmetric": False},
    {"num_bits": 4, "strategy": "group", "group_size": 32, "format": "int-quantized"},
    {"num_bits": 8, "type": "float", "strategy": "channel", "format": "float-quantized"},
    {"num_bits": 8, "type": "float", "strategy": "tensor", "format": "float-quantized"},
    {
        "num_bits": 8,
        "type": "float",
        "strategy": "block",
        "block_structure": [16, 32],
        "format": "float-quantized",
    },
]


@pytest.mark.parametrize("layer", UNPACKED, ids=lambda layer: f"{layer['format']}")
def test_unpacked_numbers_are_what_their_library_reads(tmp_path, layer):
    made = write_checkpoint(tmp_path, {"name": UP, "n": 32, "k": 64, **layer})
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


def test_a_block_that_the_matrix_does_not_fill(tmp_path):
    layer = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}
    made = write_checkpoint(
        tmp_path, {"name": UP, "n": 24, "k": 80, "format": "float-quantized", **layer}
    )
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


def test_groups_by_activation_order(tmp_path):
    made = write_checkpoint(tmp_path, packed(actorder="group", g_idx=True))
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


def test_layers_of_different_precision(tmp_path):
    int8 = {"name": DOWN, "n": 32, "k": 64, **UNPACKED[0]}
    made = write_checkpoint(tmp_path, packed(num_bits=4), int8)
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


def test_layers_are_found_by_name_then_expression_then_class(tmp_path):
    made = write_checkpoint(tmp_path, packed(UP, num_bits=4), packed(DOWN, num_bits=3))
    config = json.loads((tmp_path / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_0"]["targets"], groups["group_1"]["targets"] = ["Linear"], ["re:.*down_proj$"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


def test_scales_of_activations_and_of_the_cache_are_no_weights(tmp_path):
    made = write_checkpoint(tmp_path, packed())
    tensors = load_file(tmp_path / "model.safetensors")
    for name in (f"{UP}.input_scale", "model.layers.0.self_attn.k_scale"):
        tensors[name] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    same(dequantize(tmp_path, "compressed-tensors"), made.dense)


shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([32, 64]))


@given(shapes, st.booleans(), st.booleans(), st.integers(0, 1000))
@examples
def test_awq_reads_what_it_wrote(tmp_path, shape, symmetric, per_channel, seed):
    n, groups, size = 8 * shape[0], shape[1], shape[2]
    per = {"strategy": "channel", "group_size": None} if per_channel else {"group_size": size}
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    made = write_checkpoint(
        source, packed(n=n, k=groups * size, symmetric=symmetric, **per), seed=seed
    )
    awq.write(source, out)
    have = dequantize(out, "awq")
    assert torch.equal(have[f"{UP}.weight"], made.dense[f"{UP}.weight"])
    stored = load_file(out / "model.safetensors")
    assert stored[f"{UP}.qweight"].shape == (groups * size, n // 8)
    config = json.loads((out / "config.json").read_text())
    declared = config["quantization_config"]
    assert declared["group_size"] == (-1 if per_channel or groups == 1 else size)
    assert (declared["quant_method"], config["dtype"]) == ("awq", "float16")


@given(shapes, st.sampled_from([2, 3, 4, 8]), st.booleans(), st.booleans(), st.integers(0, 1000))
@examples
def test_gptq_reads_what_it_wrote(tmp_path, shape, num_bits, symmetric, reordered, seed):
    n, groups, size = 32 * shape[0], shape[1], shape[2]
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    order = {"actorder": "group", "g_idx": True} if reordered else {}
    layer = packed(n=n, k=groups * size, num_bits=num_bits, symmetric=symmetric, group_size=size)
    made = write_checkpoint(source, {**layer, **order}, seed=seed)
    gptq.write(source, out)
    have = dequantize(out, "gptq")
    assert torch.equal(have[f"{UP}.weight"], made.dense[f"{UP}.weight"])
    stored = load_file(out / "model.safetensors")
    assert stored[f"{UP}.qweight"].shape == (groups * size * num_bits // 32, n)
    declared = json.loads((out / "config.json").read_text())["quantization_config"]
    assert declared["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    assert (declared["bits"], declared["sym"]) == (num_bits, symmetric)
    side = json.loads((out / "quantize_config.json").read_text())
    assert {"quant_method": "gptq", **side} == declared


def test_native_layouts_hold_each_value_where_their_kernels_look(tmp_path):
    """By the formula of each kernel, value by value, apart from the code that packs."""
    made = write_checkpoint(tmp_path / "source", packed(n=16, k=64, symmetric=False))
    (linear,) = [
        each
        for _, each in compressed_tensors.stream_linears(made.folder)
        if isinstance(each, QuantizedLinear)
    ]
    one, other = gptq.to_parts(linear, v1=False), awq.to_parts(linear)
    for n in range(16):
        for k in range(64):
            level = int(linear.levels[n, k])
            assert (int(one["qweight"][k // 8, n]) >> (4 * (k % 8))) & 15 == level
            nibble = (0, 2, 4, 6, 1, 3, 5, 7).index(n % 8)
            assert (int(other["qweight"][k, n // 8]) >> (4 * nibble)) & 15 == level
            zero = int(linear.zero_points[n, k // 32])
            assert (int(one["qzeros"][k // 32, n // 8]) >> (4 * (n % 8))) & 15 == zero
            assert (int(other["qzeros"][k // 32, n // 8]) >> (4 * nibble)) & 15 == zero
    assert one["g_idx"].tolist() == [0] * 32 + [1] * 32


def test_v1_of_gptq_holds_zero_points_minus_one(tmp_path):
    write_checkpoint(tmp_path / "source", packed(n=32))
    (tmp_path / "out").mkdir()
    gptq.write(tmp_path / "source", tmp_path / "out")
    zeros = load_file(tmp_path / "out" / "model.safetensors")[f"{UP}.qzeros"]
    assert {word & 0xFFFFFFFF for word in zeros.flatten().tolist()} == {0x77777777}


def test_v1_of_gptq_has_no_zero_point_of_zero():
    levels, scales = torch.zeros(8, 8, dtype=torch.uint8), torch.ones(8, 1)
    linear = QuantizedLinear(4, levels, scales, torch.zeros(8, 1, dtype=torch.uint8))
    with pytest.raises(BuildError, match="no place for a zero point of 0"):
        gptq.to_parts(linear, v1=True)
    last = QuantizedLinear(4, levels, scales, torch.full((8, 1), 15, dtype=torch.uint8))
    again = gptq.from_parts(gptq.to_parts(last, v1=True), 4, v1=True)
    assert torch.equal(again.dequantize(), last.dequantize())


@pytest.mark.parametrize(
    ("layers", "layout", "message"),
    [
        ([packed(), packed(DOWN, num_bits=3)], gptq, "layers of 2 precisions"),
        ([packed(), packed(DOWN, group_size=16)], awq, "layers of 2 precisions"),
        ([packed(num_bits=3)], awq, "3-bit weights.*4 bits"),
        ([packed(num_bits=5)], gptq, "5-bit weights"),
        ([packed(actorder="group", g_idx=True)], awq, "activation order"),
        ([packed(n=20)], awq, "20x64 weights of 4 bits: need sizes that fill 32-bit words"),
    ],
    ids=["bits", "groups", "awq-3", "gptq-5", "act-order", "words"],
)
def test_what_a_native_layout_cannot_say_is_refused(tmp_path, layers, layout, message):
    write_checkpoint(tmp_path / "source", *layers)
    with pytest.raises(BuildError, match=message):
        layout.write(tmp_path / "source", tmp_path)


def test_int8_activations_have_no_native_layout(tmp_path):
    write_checkpoint(tmp_path, {"name": UP, "n": 32, "k": 64, **UNPACKED[0]})
    with pytest.raises(CheckpointError, match="stored unpacked"):
        gptq.write(tmp_path, tmp_path / "out")


def test_a_scale_beyond_fp16_is_refused(tmp_path):
    write_checkpoint(tmp_path, packed())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{UP}.weight_scale"][0, 0] = 1e6
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match=r"up_proj: a value of 9\.994e\+05 does not fit into fp16"):
        awq.write(tmp_path, tmp_path / "out")


def test_shards_are_one_checkpoint(tmp_path):
    made = write_checkpoint(tmp_path / "one", packed(), packed(DOWN))
    stored = plain.read_tensors(tmp_path / "one")
    many = tmp_path / "many"
    many.mkdir()
    shutil.copy2(tmp_path / "one" / "config.json", many)
    write_tensors(many, iter(stored.items()), shard_bytes=700)
    shards = sorted(many.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert not list(many.glob(".part-*"))
    index = json.loads((many / INDEX).read_text())
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.element_size() for tensor in stored.values()
    )
    same(dequantize(many, "compressed-tensors"), made.dense)
    (tmp_path / "out").mkdir()
    gptq.write(many, tmp_path / "out")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} cannot be read"):
        dequantize(many, "compressed-tensors")


def test_damaged_files_are_named(tmp_path):
    write_checkpoint(tmp_path, packed())
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors[f"{UP}.weight_scale"]
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"parts of .*up_proj do not fit"):
        dequantize(tmp_path, "compressed-tensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        dequantize(tmp_path, "plain")
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        dequantize(tmp_path, "plain")


@pytest.mark.parametrize("container", ["gptq", "awq"])
def test_another_container_than_declared_is_refused(tmp_path, container):
    write_checkpoint(tmp_path, packed())
    with pytest.raises(CheckpointError, match="declares 'compressed-tensors'"):
        dequantize(tmp_path, container)


def test_a_format_that_is_not_read_is_named(tmp_path):
    write_checkpoint(tmp_path, packed())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["format"] = "nvfp4-pack-quantized"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="stores nvfp4-pack-quantized: need"):
        dequantize(tmp_path, "compressed-tensors")


def test_parts_of_other_shapes_are_no_layer():
    levels = torch.zeros(8, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="weights 8x32 with scales 8x3"):
        QuantizedLinear(4, levels, torch.ones(8, 3))
    with pytest.raises(ValueError, match="zero points"):
        QuantizedLinear(4, levels, torch.ones(8, 2), torch.zeros(8, 1))
    with pytest.raises(ValueError, match="outside 0 to 1"):
        QuantizedLinear(4, levels, torch.ones(8, 2), None, torch.full((32,), 2))
