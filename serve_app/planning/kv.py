"""Bytes of the KV cache, as vLLM 0.32 lays it out (`v1/core/kv_cache_utils.py`)."""

from dataclasses import dataclass

from serve_app.planning.shape import ModelShape

BATCHES_IN_FLIGHT = 2
"""Steps that vLLM's asynchronous scheduling, its default, keeps in flight: a sliding window frees
its blocks only when a step is done (`VllmConfig.max_in_flight_tokens`)."""


@dataclass(frozen=True)
class CacheLayout:
    """What the cache's layout depends on besides the model."""

    max_model_len: int
    max_num_batched_tokens: int
    dtype_bytes: int = 2
    block_size: int = 16
    tensor_parallel_size: int = 1


def kv_bytes_per_token(shape: ModelShape, dtype_bytes: int = 2, tensor_parallel: int = 1) -> int:
    """Bytes per token and GPU, over all layers.

    A GPU has at least one KV head: with more GPUs than KV heads, heads are copied. Latent attention
    caches one vector that every GPU needs whole.
    """
    return shape.n_layers * _layer_bytes_per_token(shape, dtype_bytes, tensor_parallel)


def kv_bytes_per_request(shape: ModelShape, layout: CacheLayout) -> int:
    """Bytes per GPU that one request of `max_model_len` tokens holds, in whole blocks.

    Layers with a window hold at most the window and what is in flight
    (`SlidingWindowSpec.max_admission_blocks_per_request`). Where both kinds of layers are present,
    vLLM splits them into groups of equal size that draw from one pool, the last one padded
    (`_get_kv_cache_groups_uniform_page_size`); its "Maximum concurrency" follows from the same
    figures. vLLM keeps one block of the pool for itself.
    """
    page = layout.block_size * _layer_bytes_per_token(
        shape, layout.dtype_bytes, layout.tensor_parallel_size
    )
    full_blocks = -(-layout.max_model_len // layout.block_size)
    in_window = shape.window - 1 + BATCHES_IN_FLIGHT * layout.max_num_batched_tokens
    window_blocks = -(-min(in_window, layout.max_model_len) // layout.block_size) + 1
    windowed, full = shape.n_window_layers, shape.n_layers - shape.n_window_layers
    if not windowed:
        return full * page * full_blocks
    if not full:
        return windowed * page * window_blocks
    group = min(windowed, full)
    if max(windowed, full) < group * 1.5:
        group = max(windowed, full)
    groups_full, groups_windowed = -(-full // group), -(-windowed // group)
    return group * page * (groups_full * full_blocks + groups_windowed * window_blocks)


def _layer_bytes_per_token(shape: ModelShape, dtype_bytes: int, tensor_parallel: int) -> int:
    if shape.latent_dim:
        return (shape.latent_dim + shape.rope_dim) * dtype_bytes
    kv_heads = max(1, shape.n_kv_heads // tensor_parallel)
    return 2 * kv_heads * shape.head_dim * dtype_bytes
