"""GGUF files, read back by the `gguf` package's own dequantizers."""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, quants
from torch import Tensor

from serve_app.domain.errors import CheckpointError
from serve_app.engines.gguf_order import PERMUTED_ARCHITECTURES, heads_of, hugging_face_rows
from serve_app.quantize.gguf_names import hugging_face_name
from serve_app.store.gguf_config import gguf_config
from serve_app.store.gguf_header import read_gguf_header
from serve_app.store.gguf_tokenizer import gguf_file
from serve_app.store.source import GGUF_SHARD, LocalSource

IGNORED = frozenset({"rope_freqs.weight"})
"""Computed from the configuration, not learned."""


def dequantize(folder: Path) -> dict[str, Tensor]:
    """Every weight in fp32 under Hugging Face's names, q and k in Hugging Face's order.

    Raises `CheckpointError` for a file that is damaged or no Llama, or a tensor without a name.
    """
    file = gguf_file(folder)
    if GGUF_SHARD.fullmatch(file.name):
        raise CheckpointError(f"{file} is one of several parts: join them with llama-gguf-split")
    header = read_gguf_header(LocalSource(file.parent), file.name)
    architecture = header.metadata.get("general.architecture")
    if architecture not in PERMUTED_ARCHITECTURES:
        raise CheckpointError(
            f"{file} is of architecture {architecture!r}: QuanTile dequantizes "
            f"{', '.join(sorted(PERMUTED_ARCHITECTURES))}; take the model's safetensors"
        )
    config = gguf_config(header, str(file))
    dense: dict[str, Tensor] = {}
    for tensor in GGUFReader(file).tensors:
        if tensor.name in IGNORED:
            continue
        name = hugging_face_name(tensor.name)
        if name is None:
            raise CheckpointError(f"{file} has {tensor.name}, which no Llama model has")
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = heads_of(tensor.name, config["num_attention_heads"], config["num_key_value_heads"])
        if heads is not None:
            values = values[hugging_face_rows(len(values), heads)]
        dense[name] = torch.from_numpy(np.ascontiguousarray(values))
    return dense
