"""SqueezeLLM's layers with vLLM's own loaders: fusion, tensor parallelism, refusals. No engine.

The layers are stand-ins with the attributes that vLLM's loaders read; the loaders are vLLM's.
"""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import get_quantization_config

from serve_app.domain.errors import CheckpointError, ConfigError
from serve_app.engines import vllm_plugin, vllm_squeezellm_layer
from serve_app.engines.vllm_squeezellm import SqueezeLLMConfig
from serve_app.engines.vllm_squeezellm_layer import (
    DequantizedOnce,
    LookUpEachTime,
    SqueezeLLMLinearMethod,
)
from serve_app.engines.vllm_squeezellm_weights import Outliers, look_up
from serve_app.quantize.make_squeezellm import Shares, squeeze_matrix

SHARES = Shares(largest=0.03, sensitive=0)
K = 64
CONFIG = {
    "quant_method": "squeezellm",
    "checkpoint_format": "quantile-1",
    "bits": 4,
    "outliers": True,
    "ignore": ["lm_head"],
}


def matrix(rows: int, columns: int, bits: int, seed: int, shares: Shares = SHARES):
    """The stored tensors of a random matrix, and the dense one that they stand for."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    parts = squeeze_matrix(weight, None, bits, shares)
    dense = look_up(parts["qweight"], parts["lookup_table"], bits)
    if shares.any:
        names = ("outlier_counts", "outlier_columns", "outlier_values")
        Outliers(*(parts[name] for name in names), n_columns=columns).put_into(dense)
    return parts, dense


def layer_of(kind: type, rank: int, ranks: int, **attributes) -> torch.nn.Module:
    """What the loaders of this kind of layer read."""
    layer = torch.nn.Module()
    layer.prefix, layer.input_size = "model.layers.0.some_proj", K
    layer.tp_rank, layer.tp_size = rank, ranks
    for name, value in attributes.items():
        setattr(layer, name, value)
    layer.validate_shard_id = lambda shard_id: True
    layer.weight_loader = kind.weight_loader.__get__(layer)
    return layer


def loaded(layer, parts_by_shard, outputs, columns=K, bits=4, dtype=torch.float16, outliers=True):
    """The layer after vLLM's loader has put these tensors into it."""
    method = SqueezeLLMLinearMethod(bits, outliers)
    method.create_weights(
        layer, columns, outputs, K, sum(outputs), dtype, weight_loader=layer.weight_loader
    )
    parameters = dict(layer.named_parameters())
    # Tensor by tensor, in an order in which counts come before and after the rest.
    for name in ["outlier_values", "qweight", "outlier_counts", "lookup_table", "outlier_columns"]:
        for shard_id, parts in parts_by_shard.items():
            if name in parts:
                arguments = () if shard_id is None else (shard_id,)
                parameters[name].weight_loader(parameters[name], parts[name], *arguments)
    method.process_weights_after_loading(layer)
    return method


def product(method, layer, dense, dtype=torch.float16):
    """Holds the layer's product and its dense weights against those of the matrix."""
    x = torch.randn(5, dense.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.randn(dense.shape[0], generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = torch.nn.functional.linear(x, dense.to(dtype), bias)
    torch.testing.assert_close(method.apply(layer, x, bias), expected, rtol=1e-3, atol=2e-2)
    if isinstance(method.kernel, LookUpEachTime):
        assert torch.equal(method.dequantize_weight(layer), dense.to(dtype))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_queries_keys_and_values_become_one_layer(bits, ranks):
    """Four query heads of 8 and two of keys and values: with four ranks, these are copied."""
    shards = {"q": matrix(32, K, bits, 3), "k": matrix(16, K, bits, 4), "v": matrix(16, K, bits, 5)}
    copies = max(1, ranks // 2)
    for rank in range(ranks):
        heads, kv_heads = 4 // ranks, max(1, 2 // ranks)
        layer = layer_of(
            QKVParallelLinear, rank, ranks, num_heads=heads, num_kv_heads=kv_heads,
            num_kv_head_replicas=copies, head_size=8, v_head_size=8,
            total_num_heads=4, total_num_kv_heads=2,
        )  # fmt: skip
        parts = {name: parts for name, (parts, _) in shards.items()}
        method = loaded(layer, parts, [8 * heads, 8 * kv_heads, 8 * kv_heads], bits=bits)
        mine = [
            dense[place * size : (place + 1) * size]
            for dense, place, size in [
                (shards["q"][1], rank, 8 * heads),
                (shards["k"][1], rank // copies, 8 * kv_heads),
                (shards["v"][1], rank // copies, 8 * kv_heads),
            ]
        ]
        product(method, layer, torch.cat(mine))


@pytest.mark.parametrize("ranks", [1, 2])
def test_gate_and_up_become_one_layer(ranks):
    shards = {0: matrix(48, K, 4, 6), 1: matrix(48, K, 4, 7)}
    for rank in range(ranks):
        layer = layer_of(MergedColumnParallelLinear, rank, ranks, output_sizes=[48, 48])
        rows = 48 // ranks
        parts = {name: parts for name, (parts, _) in shards.items()}
        method = loaded(layer, parts, [rows, rows])
        mine = [dense[rank * rows : (rank + 1) * rows] for _, dense in shards.values()]
        product(method, layer, torch.cat(mine))


def test_a_matrix_that_is_fused_on_disk_is_taken_as_it_is():
    """Phi-3 and the like: one gate_up_proj in the checkpoint."""
    parts, dense = matrix(96, K, 4, 8)
    layer = layer_of(MergedColumnParallelLinear, 0, 1, output_sizes=[48, 48])
    product(loaded(layer, {None: parts}, [48, 48]), layer, dense)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_input_channels_are_divided_over_ranks(bits, ranks):
    parts, dense = matrix(24, K, bits, 9)
    for rank in range(ranks):
        layer = layer_of(RowParallelLinear, rank, ranks)
        columns = K // ranks
        method = loaded(layer, {None: parts}, [24], columns=columns, bits=bits)
        product(method, layer, dense[:, rank * columns : (rank + 1) * columns])


def test_without_a_sparse_part():
    parts, dense = matrix(24, K, 4, 10, Shares(0, 0))
    layer = layer_of(RowParallelLinear, 0, 1)
    product(loaded(layer, {None: parts}, [24], outliers=False), layer, dense)


@pytest.mark.parametrize("rows_at_a_time", [1, 5, 24])
def test_blocks_of_rows_give_the_same(monkeypatch, rows_at_a_time):
    monkeypatch.setattr(vllm_squeezellm_layer, "CPU_BLOCK_WEIGHTS", rows_at_a_time * K)
    parts, dense = matrix(24, K, 3, 11)
    layer = layer_of(RowParallelLinear, 0, 1)
    method = loaded(layer, {None: parts}, [24], bits=3)
    assert len(method.kernel.blocks) == -(-24 // rows_at_a_time)
    product(method, layer, dense)


def test_bf16_engines_round_the_table_and_the_outliers():
    parts, dense = matrix(24, K, 4, 12)
    layer = layer_of(RowParallelLinear, 0, 1)
    method = loaded(layer, {None: parts}, [24], dtype=torch.bfloat16)
    assert torch.equal(method.dequantize_weight(layer), dense.bfloat16())


def test_dequantized_once_nothing_packed_is_kept(monkeypatch):
    config = SimpleNamespace(
        additional_config={"squeezellm": {"dequantize_once": True}},
        kernel_config=SimpleNamespace(linear_backend="auto"),
    )
    monkeypatch.setattr(vllm_squeezellm_layer, "get_current_vllm_config_or_none", lambda: config)
    parts, dense = matrix(24, K, 4, 13)
    layer = layer_of(RowParallelLinear, 0, 1)
    method = loaded(layer, {None: parts}, [24])
    assert isinstance(method.kernel, DequantizedOnce)
    assert not [name for name, _ in layer.named_parameters() if "squeezellm" in name]
    product(method, layer, dense)


@pytest.mark.parametrize("settings", [{"dequantise": True}, {"dequantize_once": "yes"}, True])
def test_a_misspelt_setting_is_refused(monkeypatch, settings):
    config = SimpleNamespace(additional_config={"squeezellm": settings})
    monkeypatch.setattr(vllm_squeezellm_layer, "get_current_vllm_config_or_none", lambda: config)
    with pytest.raises(ConfigError, match="dequantize_once"):
        SqueezeLLMLinearMethod(4, True)


@pytest.mark.parametrize("missing", ["lookup_table", "outlier_counts", "outlier_values"])
def test_a_tensor_that_the_checkpoint_lacks_is_named(missing):
    parts, _ = matrix(24, K, 4, 14)
    del parts[missing]
    with pytest.raises(CheckpointError, match=rf"lacks {missing} of model\.layers\.0\.some_proj"):
        loaded(layer_of(RowParallelLinear, 0, 1), {None: parts}, [24])


def test_a_shard_that_the_checkpoint_lacks_is_noticed():
    parts, _ = matrix(48, K, 4, 15)
    layer = layer_of(MergedColumnParallelLinear, 0, 1, output_sizes=[48, 48])
    with pytest.raises(CheckpointError, match="lacks lookup_table"):
        loaded(layer, {0: parts}, [48, 48])


def test_ranks_that_would_split_a_byte_are_refused():
    with pytest.raises(ConfigError, match="leave 4 to each rank: need a multiple of 8"):
        loaded(layer_of(RowParallelLinear, 0, 16), {}, [24], columns=4)


def test_vllm_finds_the_method_once_the_plugin_ran():
    for _ in range(2):
        vllm_plugin.register()
    assert get_quantization_config("squeezellm") is SqueezeLLMConfig
    config = SqueezeLLMConfig.from_config(CONFIG)
    assert (config.bits, config.outliers, config.ignore) == (4, True, ["lm_head"])
    with pytest.raises(CheckpointError, match="files of the paper's own code"):
        SqueezeLLMConfig.from_config({"quant_method": "squeezellm", "wbits": 4})
