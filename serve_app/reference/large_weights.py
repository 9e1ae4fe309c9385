"""Random weights for the large shape: drawn, scaled as a trained model's start, written whole."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

START_STD = 0.02
"""Standard deviation of GPT-2's and Llama's first weights; what writes into the residual stream is
divided by sqrt(2 * layers) (Radford et al. 2019, section 2.3), so that activations stay finite."""


def tensor_shapes(config: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape (rows, columns) of every tensor of a Llama, as Hugging Face calls them."""
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (middle, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (middle, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, middle)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def write_random_weights(config: Mapping[str, int], seed: int, path: Path) -> int:
    """Draw every tensor in bf16 and save them; returns the number of parameters."""
    generator = torch.Generator().manual_seed(seed)
    residual_std = START_STD / (2 * config["num_hidden_layers"]) ** 0.5
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(config):
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else START_STD
        drawn = torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        tensors[name] = drawn.to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())
