"""GGUF files by the writer of the `gguf` package, with data of zeros."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> type and shape, outermost dimension first."""

KEYS: dict[str, Any] = {
    "block_count": 2,
    "context_length": 4096,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
Q4_K_M: Shapes = {
    "token_embd.weight": ("Q6_K", (320, 256)),
    "blk.0.attn_norm.weight": ("F32", (256,)),
    "blk.0.attn_q.weight": ("Q4_K", (256, 256)),
    "blk.0.attn_v.weight": ("Q6_K", (128, 256)),
    "blk.0.ffn_up.weight": ("Q4_K", (512, 256)),
    "output.weight": ("Q6_K", (320, 256)),
}


def n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """What the tensor takes in the file, by the table of the `gguf` package."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return math.prod(shape) // block * block_bytes


def write_gguf(
    path: Path,
    tensors: Shapes | None = None,
    architecture: str = "llama",
    keys: dict[str, Any] | None = None,
    plain: dict[str, Any] | None = None,
) -> Path:
    """A file with the keys under its architecture and the `plain` ones as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    named = {
        f"{architecture}.{key}": value for key, value in (KEYS if keys is None else keys).items()
    }
    for key, value in {**named, **(plain or {})}.items():
        _add(writer, key, value)
    for name, (dtype, shape) in (Q4_K_M if tensors is None else tensors).items():
        kind = GGMLQuantizationType[dtype]
        block, block_bytes = GGML_QUANT_SIZES[kind]
        rows = (*shape[:-1], shape[-1] // block * block_bytes)
        writer.add_tensor(name, np.zeros(rows, np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, tuple):  # (method, value), where the type matters
        method, inner = value
        getattr(writer, f"add_{method}")(key, inner)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)
