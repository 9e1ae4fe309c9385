"""Checkpoint folders as exporters leave them, with tensors of zeros."""

import json
import math
import struct
from pathlib import Path
from typing import Any

SIZES = {
    "BF16": 2, "F16": 2, "F32": 4, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1,
}  # fmt: skip
Tensors = dict[str, tuple[str, list[int]]]

EMBEDDINGS: Tensors = {
    "model.embed_tokens.weight": ("BF16", [64, 16]),
    "model.norm.weight": ("BF16", [16]),
}
LINEAR = "model.layers.0.mlp.up_proj"


def linear(**tensors: tuple[str, list[int]]) -> Tensors:
    """The tensors of one linear layer, beside embeddings."""
    return {**EMBEDDINGS, **{f"{LINEAR}.{name}": info for name, info in tensors.items()}}


PLAIN = linear(weight=("BF16", [32, 16]))
NATIVE_PACKED = linear(
    qweight=("I32", [2, 32]), qzeros=("I32", [1, 4]), scales=("F16", [1, 32]), g_idx=("I32", [16])
)
PACKED = linear(
    weight_packed=("I32", [32, 2]), weight_scale=("BF16", [32, 1]), weight_shape=("I64", [2])
)
INT8 = linear(weight=("I8", [32, 16]), weight_scale=("BF16", [32, 1]))
FLOAT8 = linear(weight=("F8_E4M3", [32, 16]), weight_scale=("BF16", [1]))


def weights(num_bits: int, **more: Any) -> dict[str, Any]:
    """The `weights` of a compressed-tensors group."""
    return {"num_bits": num_bits, "type": "int", "symmetric": True, "strategy": "channel", **more}


def compressed(*groups: dict[str, Any]) -> dict[str, Any]:
    """A compressed-tensors `quantization_config` of these groups."""
    named = {f"group_{number}": group for number, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": ["lm_head"]}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
CT_W4 = compressed({"weights": weights(4, strategy="group", group_size=128)})
CT_W4_ASYM = compressed({"weights": weights(4, group_size=128, symmetric=False)})
CT_W8A8 = compressed({"weights": weights(8), "input_activations": {"num_bits": 8, "type": "int"}})
CT_FP8 = compressed(
    {"weights": weights(8, type="float"), "input_activations": {"num_bits": 8, "type": "float"}}
)
CT_MIXED = compressed(
    {"weights": weights(4, group_size=128)},
    {"weights": weights(8), "input_activations": {"num_bits": 8, "type": "int"}},
)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """A well-formed file; shapes give the bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))


def write_checkpoint(
    folder: Path, tensors: Tensors, quantization: object = None, **config: object
) -> Path:
    """A folder with one weights file and a `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    content: dict[str, object] = {"model_type": "llama", "max_position_embeddings": 2048, **config}
    if quantization is not None:
        content["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(content))
    return folder
