"""Estimates of what an engine's forward pass and its CUDA graphs take on a GPU.

Calibrated against logs of vLLM 0.10 to 0.31 (tests/unit/test_planning_activation.py has them all).
With a warm torch.compile cache the forward pass is met within 20 %, the graphs are overestimated by
up to 2 (and by 3.5 for the newest model runner). Not covered: the first start with a cold
torch.compile cache, whose profile run was seen to take 0.5 to 1.4 GiB more, once; and encoders of
images or sound.
"""

from serve_app.planning.shape import ModelShape

SAFETY = 1.15
SAMPLER_BYTES_PER_LOGIT = 14
"""Logits in 16 bits and in float32, their probabilities, and the noise that they are divided by
(`v1/sample/ops/topk_topp_sampler.py`, `random_sample`). The profile run holds 6 of these 14 bytes:
it skips what requests with top-k and top-p do later (`v1/worker/gpu/model_runner.py`,
`_dummy_sampler_run`), so this part is meant to exceed what vLLM reports."""
GRAPH_PIECE_BYTES = 340_000
"""Per layer and batch size, of the graphs between the attention calls."""
GRAPH_DECODE_BYTES = 260_000
"""Per layer and batch size, of the full graphs of decoding."""


def activation_bytes(
    shape: ModelShape,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    dtype_bytes: int = 2,
    tensor_parallel: int = 1,
) -> int:
    """Peak of vLLM's profile run, per GPU: the widest part of a layer, or else the sampler.

    In a layer the residual and the normed input live beside the input and output of the activation
    function, or beside queries, keys, values and the attention's output.
    """
    tokens, hidden = max_num_batched_tokens, shape.hidden_size
    divided = max(_attention_width(shape), 3 * shape.intermediate_size)
    width = divided / tensor_parallel
    if shape.n_experts:
        size = shape.expert_size / tensor_parallel
        experts = shape.n_experts_per_token * (max(2 * size, hidden) + size)
        width = max(width, experts + 3 * shape.n_shared_experts * size)
    layer = tokens * (2 * hidden + width) * dtype_bytes * SAFETY
    logits = min(max_num_seqs, tokens) * shape.vocab_size
    sampler = 2 * tokens * hidden * dtype_bytes + logits * SAMPLER_BYTES_PER_LOGIT
    return int(max(layer, sampler))


def capture_sizes(max_size: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """vLLM 0.32's batch sizes for graphs up to `max_size` (`config/vllm.py`,
    `_set_cudagraph_sizes`); none for 0."""
    limit = min(max_size, max_num_batched_tokens)
    sizes = {size for size in (1, 2, 4) if size <= limit}
    sizes |= set(range(8, min(limit + 1, 256), 8)) | set(range(256, limit + 1, 16))
    if 0 < max_num_batched_tokens <= limit:
        sizes.add(max_num_batched_tokens)
    return tuple(sorted(sizes))


def graph_bytes(
    shape: ModelShape, max_size: int, max_num_batched_tokens: int, max_num_seqs: int
) -> int:
    """Memory of the captured CUDA graphs, per GPU; 0 for eager execution.

    vLLM captures every size in pieces between the attention calls, and the sizes up to
    `max_num_seqs` once more as one graph for decoding (`FULL_AND_PIECEWISE`, its default).
    """
    sizes = capture_sizes(max_size, max_num_batched_tokens)
    if not sizes:
        return 0
    n_decode = sum(size <= max_num_seqs for size in sizes)
    pieces = len(sizes) * (shape.n_layers + 1) * GRAPH_PIECE_BYTES
    return pieces + n_decode * shape.n_layers * GRAPH_DECODE_BYTES


def _attention_width(shape: ModelShape) -> int:
    """Numbers per token that one layer's attention holds at once."""
    heads = shape.n_heads
    if shape.latent_dim:  # queries, decompressed keys and values, keys with their rotary part
        return heads * (3 * shape.nope_dim + 2 * shape.rope_dim + 2 * shape.value_dim)
    return 2 * (heads + shape.n_kv_heads) * shape.head_dim
