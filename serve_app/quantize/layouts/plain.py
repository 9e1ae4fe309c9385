"""Checkpoints without quantization, and the tensors of any checkpoint as they are stored."""

from pathlib import Path

from torch import Tensor

from serve_app.quantize.layouts.shards import open_tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file, or of several and their index, as it is stored.

    Raises `CheckpointError`.
    """
    with open_tensors(folder) as tensors:
        return {name: tensors[name] for name in tensors}


def dequantize(folder: Path) -> dict[str, Tensor]:
    """Every weight in fp32. Raises `CheckpointError`."""
    with open_tensors(folder) as tensors:
        return {name: tensors[name].float() for name in tensors}
