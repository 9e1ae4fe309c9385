"""What re-packing into AutoGPTQ's and into AutoAWQ's layout have in common."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.layouts.compressed_tensors import stream_linears
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.quantize.layouts.shards import read_config

_HEAD = "lm_head"
_EMBEDDING = "embed"


@dataclass(frozen=True)
class Precision:
    """What all quantized layers share, since the native layouts declare it once.

    `group_size` is -1 for one scale per output channel. `kept`: names of the linear layers that are
    not quantized, without the head.
    """

    bits: int
    group_size: int
    symmetric: bool
    reordered: bool
    kept: tuple[str, ...]


def common_precision(source: Path) -> Precision:
    """Read a compressed-tensors checkpoint once. Raises `BuildError` if its layers differ."""
    found: set[tuple[int, int, bool]] = set()
    reordered, kept = False, []
    for name, value in stream_linears(source):
        if isinstance(value, QuantizedLinear):
            per_channel = value.scales.shape[1] == 1
            size = -1 if per_channel else value.group_size
            found.add((value.bits, size, value.zero_points is None))
            reordered |= value.g_idx is not None
        elif value.ndim == 2 and _EMBEDDING not in name:
            layer = name.removesuffix(".weight")
            kept += [layer] if layer != _HEAD else []
    if len(found) != 1:
        raise BuildError(
            f"{source} has layers of {len(found)} precisions (bits, group size, symmetric): "
            f"{sorted(found)}; GPTQ's and AWQ's layouts have one: use compressed-tensors"
        )
    ((bits, group_size, symmetric),) = found
    return Precision(bits, group_size, symmetric, reordered, tuple(kept))


def repacked(
    source: Path, layer_parts: Callable[[str, QuantizedLinear], dict[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the native checkpoint, one layer of the source after another.

    All other weights become fp16, as AutoGPTQ and AutoAWQ have them. Raises `BuildError`.
    """
    for name, value in stream_linears(source):
        if isinstance(value, QuantizedLinear):
            try:
                parts = layer_parts(name, value)
            except BuildError as error:
                raise BuildError(f"{name}: {error}") from error
            yield from ((f"{name}.{part}", tensor) for part, tensor in parts.items())
        else:
            yield name, half(value) if value.is_floating_point() else value


def config_with(source: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The source's config.json with another `quantization_config`."""
    config = read_config(source)
    config.pop("torch_dtype", None)
    return {**config, "dtype": "float16", "quantization_config": settings}


def half(values: Tensor) -> Tensor:
    """In fp16. Raises `BuildError` where a value is too large for it."""
    small = values.to(torch.float16)
    if not bool(torch.isfinite(small).all()):
        raise BuildError(
            f"a value of {float(values.abs().max()):.4g} does not fit into fp16, which GPTQ's and "
            "AWQ's layouts need: use compressed-tensors"
        )
    return small


def require_whole_words(layer: str, linear: QuantizedLinear, *sizes: int) -> None:
    """Raise `BuildError` unless values of these counts fill whole 32-bit words."""
    if any(size * linear.bits % 32 for size in sizes):
        n, k = linear.levels.shape
        raise BuildError(
            f"{layer} has {n}x{k} weights of {linear.bits} bits: need sizes that fill 32-bit words"
        )


def damaged(folder: Path, layer: str, error: Exception) -> CheckpointError:
    """The error to raise for a layer whose stored parts are missing or do not fit."""
    return CheckpointError(
        f"{folder}: the stored parts of {layer} do not fit together ({error}): copy or make the "
        "checkpoint again"
    )
