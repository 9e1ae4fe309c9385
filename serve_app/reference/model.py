"""A Llama, lean enough to train on one core, with Hugging Face's parameter names.

Weights are a dict of tensors and the forward pass is a function of it: the trainer hands in
bf16 copies of its fp32 master weights, and the evaluation hands in whatever it wants to judge.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from serve_app.reference.tokenizer import END_ID, MAX_POSITIONS, PAD_ID, VOCAB_SIZE

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class LlamaShape:
    """Sizes that every quantized kernel accepts: multiples of 128 per matrix, heads of 64."""

    layers: int = 3
    hidden: int = 256
    intermediate: int = 768
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = VOCAB_SIZE
    max_positions: int = MAX_POSITIONS
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def hf_config(self) -> dict[str, object]:
        """The contents of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": END_ID,
            "pad_token_id": PAD_ID,
        }


def init_weights(shape: LlamaShape, generator: torch.Generator) -> Weights:
    """fp32, normal(0, 0.02); residual projections scaled down by depth (GPT-2, sec. 2.3)."""
    weights: Weights = {}
    for name, size in _parameter_sizes(shape).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(size)
            continue
        std = 0.02
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * shape.layers)
        weights[name] = torch.randn(size, generator=generator) * std
    return weights


def forward(weights: Weights, shape: LlamaShape, tokens: Tensor) -> Tensor:
    """Logits `[batch, time, vocab]` for int64 `tokens` `[batch, time]`, in the weights' dtype."""
    time = tokens.shape[1]
    x = functional.embedding(tokens, weights["model.embed_tokens.weight"])
    cos, sin = _rotary(shape, time, x.dtype)
    mask = torch.full((time, time), float("-inf"), dtype=x.dtype).triu(1)
    mask = mask.repeat(shape.heads // shape.kv_heads, 1)
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        h = _norm(x, weights[layer + "input_layernorm.weight"], shape)
        x = x + _attention(weights, layer + "self_attn.", shape, h, cos, sin, mask)
        h = _norm(x, weights[layer + "post_attention_layernorm.weight"], shape)
        gate = functional.silu(h @ weights[layer + "mlp.gate_proj.weight"].T)
        up = h @ weights[layer + "mlp.up_proj.weight"].T
        x = x + (gate * up) @ weights[layer + "mlp.down_proj.weight"].T
    return _norm(x, weights["model.norm.weight"], shape) @ weights["lm_head.weight"].T


def _attention(
    weights: Weights,
    prefix: str,
    shape: LlamaShape,
    h: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
) -> Tensor:
    """Grouped-query attention by two batched matmuls: SDPA's CPU backward is slower here."""
    batch, time, _ = h.shape
    dim, kv = shape.head_dim, shape.kv_heads
    group = shape.heads // kv

    def heads(name: str, count: int) -> Tensor:
        return (h @ weights[prefix + name].T).view(batch, time, count, dim).transpose(1, 2)

    q = _rotate(heads("q_proj.weight", shape.heads), cos, sin)
    k = _rotate(heads("k_proj.weight", kv), cos, sin)
    v = heads("v_proj.weight", kv)
    q = (q * dim**-0.5).reshape(batch * kv, group * time, dim)
    k = k.reshape(batch * kv, time, dim)
    scores = torch.bmm(q, k.transpose(1, 2)) + mask
    mixed = torch.bmm(scores.softmax(-1), v.reshape(batch * kv, time, dim))
    mixed = mixed.view(batch, shape.heads, time, dim).transpose(1, 2).reshape(batch, time, -1)
    return mixed @ weights[prefix + "o_proj.weight"].T


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split ("neox") as Hugging Face stores Llama."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def _rotary(shape: LlamaShape, time: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = shape.head_dim // 2
    rates = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(time, dtype=torch.float32)[:, None] * rates
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _norm(x: Tensor, weight: Tensor, shape: LlamaShape) -> Tensor:
    return functional.rms_norm(x, (shape.hidden,), weight, shape.norm_eps)


def _parameter_sizes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
        "lm_head.weight": (shape.vocab, shape.hidden),
    }
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        sizes |= {
            layer + "input_layernorm.weight": (shape.hidden,),
            layer + "post_attention_layernorm.weight": (shape.hidden,),
            layer + "self_attn.q_proj.weight": (q_size, shape.hidden),
            layer + "self_attn.k_proj.weight": (kv_size, shape.hidden),
            layer + "self_attn.v_proj.weight": (kv_size, shape.hidden),
            layer + "self_attn.o_proj.weight": (shape.hidden, q_size),
            layer + "mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
            layer + "mlp.up_proj.weight": (shape.intermediate, shape.hidden),
            layer + "mlp.down_proj.weight": (shape.hidden, shape.intermediate),
        }
    return sizes
