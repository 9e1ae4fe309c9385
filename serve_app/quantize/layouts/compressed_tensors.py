"""compressed-tensors checkpoints, as llm-compressor writes them.

A linear layer is stored as `weight_packed` (integers, packed along the input channels), or as
`weight` (int8, or fp8), with `weight_scale` and, if asymmetric, `weight_zero_point`. Which layer
has how many bits is in config.json's `quantization_config.config_groups`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_app.domain.errors import CheckpointError
from serve_app.quantize.layouts import bits as packing
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.quantize.layouts.shards import LazyTensors, open_tensors, read_config

FORMATS = {
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision",
    "dense",
}  # fmt: skip
"""Storage formats that are read here; NVFP4, MXFP4 and sparse ones are not."""

_PARTS = (
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
    "input_scale", "input_zero_point", "output_scale", "output_zero_point",
    "k_scale", "k_zero_point", "v_scale", "v_zero_point", "q_scale", "q_zero_point",
)  # fmt: skip
"""What is used up by dequantizing, or belongs to activations or the KV cache."""


@dataclass(frozen=True)
class WeightScheme:
    """How the weights of some layers are stored: `weights` of one of the config_groups."""

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    block: tuple[int, int] | None
    quantized_activations: bool


class Schemes:
    """Which layer is stored how, by `config_groups`. Raises `CheckpointError`."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder).get("quantization_config") or {}
        self._folder = folder
        if config.get("quant_method") != "compressed-tensors":
            raise CheckpointError(
                f"{folder}/config.json declares {config.get('quant_method')!r}: need a "
                "quantization_config of compressed-tensors"
            )
        groups = config.get("config_groups") or {}
        formats = {config.get("format") or "dense"}
        formats |= {group["format"] for group in groups.values() if group.get("format")}
        if unknown := formats - FORMATS:
            raise CheckpointError(
                f"{folder} stores {', '.join(sorted(unknown))}: need {', '.join(sorted(FORMATS))}"
            )
        self._of_target = {
            target: _scheme(group) for group in groups.values() for target in group["targets"]
        }

    def of(self, layer: str) -> WeightScheme:
        """The scheme that a quantized layer's name has: by name, by `re:`, then by class."""
        named = self._of_target.get(layer)
        if named is not None:
            return named
        for target, scheme in self._of_target.items():
            if target.startswith("re:") and re.match(target[3:], layer):
                return scheme
        if "Linear" in self._of_target:
            return self._of_target["Linear"]
        raise CheckpointError(
            f"{self._folder} has quantized weights of {layer}, which no group of config.json names"
        )


def dequantize(folder: Path) -> dict[str, Tensor]:
    """Every weight in fp32 under Hugging Face's name. Raises `CheckpointError`."""
    return dict(stream(folder))


def stream(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The same one by one: what is stored is read when it is asked for."""
    schemes = Schemes(folder)
    with open_tensors(folder) as tensors:
        for name in tensors:
            layer, _, part = name.rpartition(".")
            if part == "weight_packed" or (part == "weight" and f"{layer}.weight_scale" in tensors):
                scheme = schemes.of(layer)
                try:
                    if scheme.kind == "float":
                        yield f"{layer}.weight", _dense_float(tensors, layer, scheme)
                    else:
                        yield f"{layer}.weight", read_linear(tensors, layer, scheme).dequantize()
                except (KeyError, ValueError) as error:
                    raise _damaged(folder, layer, error) from error
            elif part not in _PARTS:
                yield name, tensors[name].float()


def stream_linears(folder: Path) -> Iterator[tuple[str, QuantizedLinear | Tensor]]:
    """Layer names with their integers, and the names of all other weights with their tensors.

    Raises `CheckpointError`, also for layers that hold no integers or round their activations.
    """
    schemes = Schemes(folder)
    with open_tensors(folder) as tensors:
        for name in tensors:
            layer, _, part = name.rpartition(".")
            if part == "weight_packed":
                scheme = schemes.of(layer)
                if scheme.kind != "int" or scheme.quantized_activations:
                    raise CheckpointError(
                        f"{folder}: {layer} quantizes activations or has no integers: need "
                        "weight-only integers"
                    )
                try:
                    yield layer, read_linear(tensors, layer, scheme)
                except (KeyError, ValueError) as error:
                    raise _damaged(folder, layer, error) from error
            elif part == "weight" and f"{layer}.weight_scale" in tensors:
                raise CheckpointError(
                    f"{folder}: {layer} is stored unpacked (8 bits): need packed integers"
                )
            elif part not in _PARTS:
                yield name, tensors[name]


def read_linear(
    tensors: Mapping[str, Tensor] | LazyTensors, layer: str, scheme: WeightScheme
) -> QuantizedLinear:
    """One layer's integers. Raises `KeyError` or `ValueError` if its parts do not fit."""
    middle = 1 << (scheme.bits - 1)
    packed = f"{layer}.weight_packed" in tensors
    if packed:
        n, k = (int(size) for size in tensors[f"{layer}.weight_shape"])
        levels = packing.unpack(tensors[f"{layer}.weight_packed"], scheme.bits, k)
        if levels.shape[0] != n:
            raise ValueError(f"weight_shape says {n} rows, there are {levels.shape[0]}")
    else:
        levels = _unsigned(tensors[f"{layer}.weight"], middle)
        n = levels.shape[0]
    scales = tensors[f"{layer}.weight_scale"]
    zeros = None
    if not scheme.symmetric:
        zeros = tensors[f"{layer}.weight_zero_point"]
        if packed and zeros.dtype is torch.int32:
            zeros = packing.unpack(zeros.T.contiguous(), scheme.bits, n).T.contiguous()
        else:
            zeros = _unsigned(zeros, middle)
        zeros = _per_row(zeros, n)
    g_idx = tensors.get(f"{layer}.weight_g_idx")
    return QuantizedLinear(scheme.bits, levels, _per_row(scales, n), zeros, g_idx)


def _per_row(values: Tensor, n: int) -> Tensor:
    """One value for all of a tensor, written once per output channel."""
    return values.expand(n, 1).contiguous() if values.numel() == 1 else values


def _unsigned(values: Tensor, middle: int) -> Tensor:
    return (values.to(torch.int16) + middle).to(torch.uint8)


def _dense_float(tensors: LazyTensors, layer: str, scheme: WeightScheme) -> Tensor:
    """fp8 times its scale: of the tensor, the output channel, the group or the block."""
    weight = tensors[f"{layer}.weight"].float()
    scale = tensors[f"{layer}.weight_scale"].float()
    n, k = weight.shape
    if scheme.block is not None:
        height, width = scheme.block
        scale = scale.repeat_interleave(height, 0)[:n].repeat_interleave(width, 1)[:, :k]
    elif scale.numel() == 1:
        scale = scale.reshape(1, 1)
    elif scale.shape[1] > 1:
        scale = scale.repeat_interleave(k // scale.shape[1], 1)
    if scale.shape[0] not in (1, n) or scale.shape[1] not in (1, k):
        raise ValueError(f"weights {n}x{k} with scales that cover {tuple(scale.shape)}")
    return weight.mul_(scale)


def _scheme(group: Mapping[str, Any]) -> WeightScheme:
    weights = group.get("weights") or {}
    block = weights.get("block_structure")
    return WeightScheme(
        bits=weights.get("num_bits", 8),
        kind=weights.get("type", "int"),
        symmetric=weights.get("symmetric", True),
        strategy=weights.get("strategy") or "tensor",
        block=(int(block[0]), int(block[1])) if block else None,
        quantized_activations=group.get("input_activations") is not None,
    )


def _damaged(folder: Path, layer: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the stored parts of {layer} do not fit together ({error}): copy or make the "
        "checkpoint again"
    )
