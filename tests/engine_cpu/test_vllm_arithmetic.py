"""Our arithmetic against vLLM's own code: groups of KV cache layers, sizes of CUDA graphs."""

import dataclasses
from types import SimpleNamespace

import pytest

from serve_app.planning.activation import capture_sizes
from serve_app.planning.kv import CacheLayout, kv_bytes_per_request
from serve_app.planning.shape import ModelShape
from tests.unit.test_planning_shape import shape

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

GEMMA = shape("gemma-3-12b")
SHAPES = {
    "llama-3.1-8b": shape("llama-3.1-8b"),
    "deepseek-v2-lite": shape("deepseek-v2-lite"),
    "gemma-2-9b": shape("gemma-2-9b"),
    "gemma-3-12b": GEMMA,
    "phi-3-mini-4k": shape("phi-3-mini-4k"),
    "10 full, 52 windowed": dataclasses.replace(GEMMA, n_layers=62, n_window_layers=52),
    "13 full, 12 windowed": dataclasses.replace(GEMMA, n_layers=25, n_window_layers=12),
    "one full": dataclasses.replace(GEMMA, n_layers=7, n_window_layers=6),
}


def vllm_bytes(model: ModelShape, layout: CacheLayout) -> int:
    """What vLLM 0.32 says that one request of the longest length needs."""
    import torch
    from vllm.v1.core.kv_cache_utils import (
        _max_memory_usage_bytes_from_groups,
        get_kv_cache_groups,
    )
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec
    from vllm.v1.kv_cache_layout import KVCacheLayout

    common = {"block_size": layout.block_size, "dtype": torch.bfloat16, "dcp_sharded": False}
    heads = {"num_kv_heads": model.n_kv_heads, "head_size": model.head_dim}
    specs = {}
    for layer in range(model.n_layers):
        if model.latent_dim:
            size = model.latent_dim + model.rope_dim
            spec = MLAAttentionSpec(**common, num_kv_heads=1, head_size=size)
        elif layer < model.n_window_layers:
            spec = SlidingWindowSpec(**common, **heads, sliding_window=model.window)
        else:
            spec = FullAttentionSpec(**common, **heads)
        specs[f"model.layers.{layer}"] = spec
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=layout.max_model_len),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        cache_config=SimpleNamespace(get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBHNC),
        max_in_flight_tokens=2 * layout.max_num_batched_tokens,
    )
    return _max_memory_usage_bytes_from_groups(config, get_kv_cache_groups(config, specs))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("max_model_len", "batched"), [(4096, 2048), (8192, 512), (32768, 2048), (1000, 64)]
)
def test_bytes_per_request(name, max_model_len, batched):
    layout = CacheLayout(max_model_len, batched)
    assert kv_bytes_per_request(SHAPES[name], layout) == vllm_bytes(SHAPES[name], layout)


@pytest.mark.parametrize("batched", [64, 100, 256, 2048, 8192])
@pytest.mark.parametrize("largest", [1, 3, 8, 16, 64, 100, 255, 256, 300, 512])
def test_capture_sizes(largest, batched):
    from vllm.config import CUDAGraphMode, VllmConfig

    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        max_cudagraph_capture_size=largest,
        cudagraph_capture_sizes=None,
        post_init_cudagraph_sizes=lambda: None,
    )
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=batched),
        performance_mode="balanced",
    )
    VllmConfig._set_cudagraph_sizes(config)
    assert capture_sizes(largest, batched) == tuple(compilation.cudagraph_capture_sizes)
