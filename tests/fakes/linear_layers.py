"""Compressed-tensors checkpoints of random weights, written by that library's own compressors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Written:
    """A checkpoint and what the library itself makes of it, by weight's name."""

    folder: Path
    dense: dict[str, Tensor]


def write_checkpoint(folder: Path, *layers: dict[str, Any], seed: int = 0) -> Written:
    """One linear layer per entry: `name`, `n`, `k`, `format`, and arguments of its weights.

    `activations` (arguments too) and `g_idx` (a permuted one) are optional. Beside them stand an
    embedding and a norm, as in any decoder.
    """
    generator = torch.Generator().manual_seed(seed)
    stored: dict[str, Tensor] = {
        "model.embed_tokens.weight": torch.randn(8, 4, generator=generator).bfloat16(),
        "model.norm.weight": torch.rand(4, generator=generator).bfloat16(),
    }
    dense = {name: tensor.float() for name, tensor in stored.items()}
    groups = {}
    for i, layer in enumerate(layers):
        options = dict(layer)
        name, n, k = options.pop("name"), options.pop("n"), options.pop("k")
        kind, activations = options.pop("format"), options.pop("activations", None)
        reordered = options.pop("g_idx", False)
        weights = QuantizationArgs(**options)
        scheme = QuantizationScheme(
            targets=[name],
            weights=weights,
            input_activations=QuantizationArgs(**activations) if activations else None,
            format=kind,
        )
        state = _layer(weights, n, k, reordered, generator)
        compressor = BaseCompressor.get_value_from_registry(kind)
        parts = compressor.compress(state, scheme)
        # fp32 scales: what the library dequantizes to has the scales' precision.
        exact = {key: _exact(key, part) for key, part in parts.items()}
        dense[f"{name}.weight"] = _dense(compressor, exact, scheme)
        stored |= {f"{name}.{key}": part for key, part in parts.items()}
        groups[f"group_{i}"] = scheme.model_dump(mode="json")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors"
    )
    formats = {layer["format"] for layer in layers}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }
    config = {"model_type": "llama", "dtype": "bfloat16", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return Written(folder, dense)


def _layer(
    weights: QuantizationArgs, n: int, k: int, reordered: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    height, width = weights.block_structure or (1, 1)
    shape = {
        "tensor": (1,),
        "channel": (n, 1),
        "group": (n, k // (weights.group_size or k)),
        "block": (-(-n // height), -(-k // width)),
    }[weights.strategy]
    scale = (torch.rand(shape, generator=generator) * 0.02 + 0.001).bfloat16()
    state = {"weight": torch.randn(n, k, generator=generator) * 0.1, "weight_scale": scale}
    half = 1 << (weights.num_bits - 1)
    if weights.symmetric:
        state["weight_zero_point"] = torch.zeros(shape, dtype=torch.int8)
    else:
        zeros = torch.randint(-half, half, shape, generator=generator)
        state["weight_zero_point"] = zeros.to(torch.int8)
    if weights.type == "float":
        del state["weight_zero_point"]
        state["weight"] = state["weight"].bfloat16()
    if reordered:
        runs = torch.arange(k, dtype=torch.int32) // weights.group_size
        state["weight_g_idx"] = runs[torch.randperm(k, generator=generator)]
    return state


def _dense(compressor: Any, parts: dict[str, Tensor], scheme: QuantizationScheme) -> Tensor:
    if scheme.weights.strategy == "block":
        # Told the block's size: `decompress` would infer it, wrongly where blocks are not full.
        return dequantize(parts["weight"], parts["weight_scale"], args=scheme.weights)
    return compressor.decompress(parts, scheme)["weight"].float()


def _exact(key: str, part: Tensor) -> Tensor:
    return part.float() if key == "weight_scale" else part
