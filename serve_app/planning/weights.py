"""Bytes of the weights on the device, as vLLM 0.32 holds them after loading.

What differs from the checkpoint's file, by `vllm/model_executor`:
- Plain tensors take the engine's dtype, whatever the file has.
- Embedding and head are padded to a multiple of 64 rows (`layers/vocab_parallel_embedding.py`); a
  head that is tied to the embedding is not loaded.
- Scales of 8-bit weights become float32; those of packed weights take the engine's dtype
  (`layers/quantization/compressed_tensors/schemes`).
- `g_idx`, `rotary_emb.inv_freq` and layers beyond the configured number (multi-token prediction)
  are not loaded; a rotary table of all positions is made.
- Latent attention keeps dequantized copies of `kv_b_proj` beside quantized ones
  (`layers/attention/mla_attention.py`, `split_kv_b_proj`).
- On SM90, Machete unpacks zero points to the engine's dtype (`kernels/linear/mixed_precision`);
  elsewhere Marlin drops those of symmetric weights. We count the packed ones: at most 0.8 % of the
  packed weights too much.
- SqueezeLLM is our own plugin's (`engines/vllm_squeezellm_layer.py`): codes as in the file, tables
  in the engine's dtype, and of an outlier four bytes for its place beside its value.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping

from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.tensors import TensorInfo
from serve_app.planning.facts import Source, WeightBytes
from serve_app.planning.shape import ModelShape

VOCAB_PADDING = 64
REPACKED_SHARE, PLAIN_SHARE = 0.04, 0.015
"""What PyTorch's allocator adds to packed and to plain weights: blocks of 2 MiB, and of what was
freed while the kernels repacked. Seen in logs: Qwen2.5-7B-AWQ 5.38 and 5.39 GiB (vLLM 0.31, 0.28)
for 5.20 of tensors, Qwen2.5-7B 14.29 and 14.37 (0.22, 0.24) for 14.19, Llama-3.1-8B 15.00 (0.31)
for 14.99."""
MACHETE_CAPABILITY = (9, 0)
OUTLIER_SHARE, OUTLIER_PLACE_BYTES = 0.0045, 4
"""SqueezeLLM's sparse part where there are no headers: the paper's share (arXiv 2306.07629, sec.
4.2), as in our recipes."""
LOOKUP_BLOCK_WEIGHTS, LOOKUP_WEIGHT_BYTES = 2**24, 8
"""Dense weights that SqueezeLLM's layers look up at a time on a GPU, and bytes of each: an int64
index and a 32-bit entry per two weights, and their codes."""

_PLAIN = {"F64", "F32", "F16", "BF16"}
_NOT_LOADED = ("rotary_emb.inv_freq", ".g_idx", ".weight_g_idx", ".weight_shape", "masked_bias")
_LAYER = re.compile(r"(?:language_model\.)?model\.layers\.(\d+)\.")
_KEPT_IN_FLOAT32 = ("e_score_correction_bias",)
_SCALES = (
    ".weight_scale",
    ".weight_scale_inv",
    ".input_scale",
    ".scales",
    ".qzeros",
    ".weight_zero_point",
    ".k_scale",
    ".v_scale",
    ".lookup_table",
)
_OUTLIER_COUNTS, _OUTLIER_COLUMNS, _OUTLIER_VALUES = (
    ".outlier_counts",
    ".outlier_columns",
    ".outlier_values",
)
_PACKED = {QuantMethod.GPTQ, QuantMethod.AWQ}
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "token_embd.weight")
_HEADS = ("lm_head.", "output.weight")

GGUF_BITS = {2: 3.16, 3: 4.00, 4: 4.89, 5: 5.70, 6: 6.56, 8: 8.50}
"""Bits per weight over the whole file of the usual mix (Q4_K_M and the like) at each nominal width,
by the table in llama.cpp's tools/quantize/README.md for Llama-3.1-8B."""


def weights_from_tensors(
    shape: ModelShape,
    scheme: QuantScheme,
    tensors: Mapping[str, TensorInfo],
    dtype_bytes: int = 2,
) -> WeightBytes:
    """The bytes on the device of a checkpoint with these tensors, by kind.

    `dtype_bytes` is the size of the engine's dtype.
    """
    kinds: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if not _is_loaded(name, shape):
            continue
        kind = _kind(name, tensor)
        n_bytes = _resident_bytes(kind, name, tensor, scheme, dtype_bytes)
        if kind in {"embedding", "head"}:
            n_bytes = n_bytes * _padded(shape.vocab_size) // shape.vocab_size
        kinds[kind] += n_bytes
    return WeightBytes(
        linear_bytes=kinds["linear"] + _latent_copies(shape, scheme, dtype_bytes),
        scale_bytes=kinds["scale"],
        embedding_bytes=kinds["embedding"],
        head_bytes=kinds["head"],
        other_bytes=kinds["other"] + _rotary_table(shape, dtype_bytes),
        source=Source.HEADERS,
    )


def weights_from_shape(shape: ModelShape, scheme: QuantScheme, dtype_bytes: int = 2) -> WeightBytes:
    """The bytes on the device of a model of this shape whose linear layers are stored so.

    GGUF stands for the usual mix at that width, embedding and head included; SqueezeLLM has a table
    of 2^bits values per output channel, and outliers; a mixed scheme counts with its widest
    weights.
    """
    linear, channels = _linear_sizes(shape)
    table = _padded(shape.vocab_size) * shape.hidden_size * dtype_bytes
    bits = float(scheme.bits)
    scales = 0
    if scheme.method is QuantMethod.UNQUANTIZED:
        bits = 8.0 * dtype_bytes
    elif scheme.method is QuantMethod.GGUF:
        bits = GGUF_BITS.get(scheme.bits, scheme.bits + 1.0)
        table = math.ceil(table / dtype_bytes * bits / 8)
    elif scheme.method is QuantMethod.SQUEEZELLM:
        scales = channels * 2**scheme.bits * dtype_bytes
        bits += OUTLIER_SHARE * 8 * (OUTLIER_PLACE_BYTES + dtype_bytes)
    elif scheme.activation_bits == 8 or scheme.method is QuantMethod.FP8:
        scales = channels * 4
    else:
        groups = linear // scheme.group_size if scheme.group_size else channels
        has_zero_points = not scheme.symmetric or scheme.container == "gptq"
        scales = groups * dtype_bytes + (groups * scheme.bits // 8 if has_zero_points else 0)
    return WeightBytes(
        linear_bytes=math.ceil(linear * bits / 8) + _latent_copies(shape, scheme, dtype_bytes),
        scale_bytes=scales,
        embedding_bytes=table,
        head_bytes=0 if shape.tied_embeddings else table,
        other_bytes=_other_size(shape) * dtype_bytes + _rotary_table(shape, dtype_bytes),
        source=Source.CONFIG,
    )


def lookup_bytes(scheme: QuantScheme) -> int:
    """What SqueezeLLM's layers take for a moment on a GPU to look weights up; else 0."""
    is_looked_up = scheme.method is QuantMethod.SQUEEZELLM
    return LOOKUP_BLOCK_WEIGHTS * LOOKUP_WEIGHT_BYTES if is_looked_up else 0


def rank_bytes(shape: ModelShape, weights: WeightBytes, tensor_parallel: int) -> int:
    """The bytes of one of `tensor_parallel` GPUs.

    Linear layers, embedding and head are divided; norms, routers and the rotary table are not, nor
    the compressing projections of latent attention; with more GPUs than KV heads, these are copied.
    """
    divided = weights.total_bytes - weights.other_bytes
    linear, _ = _linear_sizes(shape)
    bytes_per_weight = (weights.linear_bytes + weights.scale_bytes) / linear
    copied = 0
    if shape.latent_dim:
        copied = _latent_down(shape) * shape.n_layers
        share = copied / tensor_parallel
    else:
        heads = max(1, shape.n_kv_heads // tensor_parallel)
        per_head = 2 * shape.head_dim * shape.hidden_size * shape.n_layers
        copied, share = per_head * heads, per_head * shape.n_kv_heads / tensor_parallel
    extra = (copied - share) * bytes_per_weight
    return weights.other_bytes + math.ceil(divided / tensor_parallel + extra)


def allocated_bytes(n_bytes: int, scheme: QuantScheme) -> int:
    """What the GPU's allocator takes for so many bytes of weights."""
    packed = scheme.method in _PACKED and scheme.activation_bits == 16
    return math.ceil(n_bytes * (1 + (REPACKED_SHARE if packed else PLAIN_SHARE)))


def unpacked_zero_points_bytes(shape: ModelShape, scheme: QuantScheme, dtype_bytes: int) -> int:
    """What Machete adds to the packed zero points of asymmetric 4-bit weights, whole model."""
    packed = scheme.method in _PACKED and scheme.activation_bits == 16
    if not packed or scheme.symmetric or not scheme.group_size:
        return 0
    groups = _linear_sizes(shape)[0] // scheme.group_size
    return groups * dtype_bytes - groups * scheme.bits // 8


def _is_loaded(name: str, shape: ModelShape) -> bool:
    layer = _LAYER.match(name)
    beyond = layer is not None and int(layer[1]) >= shape.n_layers
    return not (beyond or name.endswith(_NOT_LOADED) or (shape.tied_embeddings and _is_head(name)))


def _kind(name: str, tensor: TensorInfo) -> str:
    if name.endswith(_EMBEDDINGS):
        return "embedding"
    if _is_head(name):
        return "head"
    if name.endswith(_SCALES):
        return "scale"
    if name.endswith((_OUTLIER_COUNTS, _OUTLIER_COLUMNS, _OUTLIER_VALUES)):
        return "linear"
    is_router = name.endswith((".gate.weight", "_gate.weight", "ffn_gate_inp.weight"))
    if len(tensor.shape) < 2 or is_router or name.endswith(_KEPT_IN_FLOAT32):
        return "other"
    return "linear"


def _is_head(name: str) -> bool:
    return name.startswith(_HEADS)


def _resident_bytes(
    kind: str, name: str, tensor: TensorInfo, scheme: QuantScheme, dtype_bytes: int
) -> int:
    if name.endswith(_OUTLIER_COUNTS):
        return 0
    if name.endswith(_OUTLIER_COLUMNS):
        return math.prod(tensor.shape) * OUTLIER_PLACE_BYTES
    if scheme.method is QuantMethod.GGUF or tensor.dtype not in _PLAIN:
        return tensor.n_bytes
    if name.endswith(_KEPT_IN_FLOAT32):
        return tensor.n_bytes
    is_wide_scale = scheme.activation_bits == 8 or scheme.method is QuantMethod.FP8
    size = 4 if kind == "scale" and is_wide_scale else dtype_bytes
    return math.prod(tensor.shape) * size


def _padded(rows: int) -> int:
    return -(-rows // VOCAB_PADDING) * VOCAB_PADDING


def _rotary_table(shape: ModelShape, dtype_bytes: int) -> int:
    """One table of all positions, or two where windowed layers have frequencies of their own."""
    n_tables = 2 if 0 < shape.n_window_layers < shape.n_layers else 1
    return n_tables * shape.context_length * (shape.rope_dim or shape.head_dim) * dtype_bytes


def _latent_copies(shape: ModelShape, scheme: QuantScheme, dtype_bytes: int) -> int:
    if not shape.latent_dim or scheme.method is QuantMethod.UNQUANTIZED:
        return 0
    per_layer = shape.latent_dim * shape.n_heads * (shape.nope_dim + shape.value_dim)
    return per_layer * shape.n_layers * dtype_bytes


def _latent_down(shape: ModelShape) -> int:
    """Weights of one layer's compressing projections."""
    return shape.hidden_size * (shape.query_rank + shape.latent_dim + shape.rope_dim)


def _linear_sizes(shape: ModelShape) -> tuple[int, int]:
    """Weights and output channels of all linear layers."""
    attention, attention_channels = _attention_sizes(shape)
    n_up = 2 if shape.gated_mlp else 1
    hidden = shape.hidden_size
    n_ffn = shape.n_expert_layers * (shape.n_experts + shape.n_shared_experts)
    n_dense = shape.n_layers - shape.n_expert_layers
    widths = n_ffn * shape.expert_size + n_dense * shape.intermediate_size
    linear = attention * shape.n_layers + (n_up + 1) * hidden * widths
    channels = attention_channels * shape.n_layers + n_up * widths + hidden * (n_ffn + n_dense)
    return linear, channels


def _attention_sizes(shape: ModelShape) -> tuple[int, int]:
    """Weights and output channels of one layer's attention."""
    hidden, heads = shape.hidden_size, shape.n_heads
    if not shape.latent_dim:
        queries, keys = heads * shape.head_dim, 2 * shape.n_kv_heads * shape.head_dim
        return hidden * (2 * queries + keys), queries + keys + hidden
    queries = heads * (shape.nope_dim + shape.rope_dim)
    keys = heads * (shape.nope_dim + shape.value_dim)
    down = shape.query_rank + shape.latent_dim + shape.rope_dim
    weights = (
        hidden * down
        + (shape.query_rank or hidden) * queries
        + shape.latent_dim * keys
        + heads * shape.value_dim * hidden
    )
    return weights, down + queries + keys + hidden


def _other_size(shape: ModelShape) -> int:
    """Norms, biases and routers."""
    hidden = shape.hidden_size
    per_layer = shape.norms_per_layer * hidden + (2 * shape.head_dim if shape.head_norms else 0)
    if shape.qkv_bias:
        per_layer += (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
    if shape.output_bias:
        per_layer += hidden
    if shape.mlp_bias:
        per_layer += (2 if shape.gated_mlp else 1) * shape.intermediate_size + hidden
    if shape.latent_dim:
        per_layer += shape.latent_dim + shape.query_rank
    return shape.n_layers * per_layer + hidden + shape.n_expert_layers * hidden * shape.n_experts
