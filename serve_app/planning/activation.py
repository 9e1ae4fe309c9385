"""Estimates of what an engine's forward pass and its CUDA graphs take on a GPU."""

from serve_app.domain.units import MIB
from serve_app.planning.shape import ModelShape

SAFETY = 1.3
GRAPH_BYTES_PER_LAYER = MIB // 4
GRAPH_POOL_BYTES = 64 * MIB


def activation_bytes(
    shape: ModelShape,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    dtype_bytes: int = 2,
    tensor_parallel: int = 1,
) -> int:
    """Peak of vLLM's profile run, per GPU: a forward pass, then a sampler's pass."""
    tokens, hidden = max_num_batched_tokens, shape.hidden_size
    width = shape.intermediate_size
    if shape.n_experts:
        per_token = shape.expert_size * (shape.n_experts_per_token + shape.n_shared_experts)
        width = max(width, per_token)
    layer = tokens * (4 * hidden + 3 * width // tensor_parallel) * dtype_bytes
    rows = min(max_num_seqs, tokens)
    sampler = 2 * tokens * hidden * dtype_bytes + rows * shape.vocab_size * (2 * dtype_bytes + 16)
    return int(max(layer, sampler) * SAFETY)


def capture_sizes(max_size: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """vLLM 0.32's batch sizes for graphs up to `max_size` (`config/vllm.py`,
    `_set_cudagraph_sizes`); none for 0."""
    limit = min(max_size, max_num_batched_tokens)
    sizes = {size for size in (1, 2, 4) if size <= limit}
    sizes |= set(range(8, min(limit + 1, 256), 8)) | set(range(256, limit + 1, 16))
    if 0 < max_num_batched_tokens <= limit:
        sizes.add(max_num_batched_tokens)
    return tuple(sorted(sizes))


def graph_bytes(shape: ModelShape, max_size: int, max_num_batched_tokens: int) -> int:
    """Memory of the captured CUDA graphs, per GPU; 0 for eager execution."""
    n_sizes = len(capture_sizes(max_size, max_num_batched_tokens))
    if not n_sizes:
        return 0
    return GRAPH_POOL_BYTES + n_sizes * shape.n_layers * GRAPH_BYTES_PER_LAYER
