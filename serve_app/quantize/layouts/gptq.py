"""AutoGPTQ's layout: what TheBloke's "GPTQ" repositories hold.

Per layer of N x K weights: `qweight` int32 `[K*bits/32, N]` (packed along the input channels),
`qzeros` int32 `[G, N*bits/32]`, `scales` fp16 `[G, N]`, `g_idx` int32 `[K]`. `checkpoint_format`
`gptq` holds each zero point minus one, as AutoGPTQ did from the start, and so has no place for a
zero point of 0; `gptq_v2` (GPTQModel's) holds it as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.layouts import bits as packing
from serve_app.quantize.layouts import native
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.quantize.layouts.shards import open_tensors, read_config, write_json, write_tensors

BITS = (2, 3, 4, 8)
QUANTIZE_CONFIG = "quantize_config.json"
"""Where AutoGPTQ put what is now `quantization_config` in config.json."""

_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def write(source: Path, out: Path) -> None:
    """Re-pack a compressed-tensors checkpoint: weights, config.json and quantize_config.json.

    Asymmetric weights are written as `gptq_v2`. Raises `BuildError` for what the layout cannot say:
    layers of different precision, 5 or 6 bits, scales beyond fp16, sizes that fill no whole word.
    """
    common = native.common_precision(source)
    if common.bits not in BITS:
        raise BuildError(f"{source} has {common.bits}-bit weights: GPTQ's layout has {BITS} bits")
    v1 = common.symmetric
    settings: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": common.bits,
        "group_size": common.group_size,
        "desc_act": common.reordered,
        "sym": common.symmetric,
        "checkpoint_format": "gptq" if v1 else "gptq_v2",
        "lm_head": False,
    }

    def layer_parts(layer: str, linear: QuantizedLinear) -> dict[str, Tensor]:
        native.require_whole_words(layer, linear, *linear.levels.shape)
        return to_parts(linear, v1=v1)

    write_tensors(out, native.repacked(source, layer_parts))
    write_json(out / "config.json", native.config_with(source, settings))
    plain = {key: value for key, value in settings.items() if key != "quant_method"}
    write_json(out / QUANTIZE_CONFIG, plain)


def dequantize(folder: Path) -> dict[str, Tensor]:
    """Every weight in fp32 under Hugging Face's name. Raises `CheckpointError`."""
    return dict(stream(folder))


def stream(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The same one by one: what is stored is read when it is asked for."""
    bits, v1 = _settings(folder)
    with open_tensors(folder) as tensors:
        for name in tensors:
            layer, _, part = name.rpartition(".")
            if part == "qweight":
                try:
                    found = {
                        key: tensors[f"{layer}.{key}"]
                        for key in _PARTS
                        if key != "g_idx" or f"{layer}.g_idx" in tensors
                    }
                    yield f"{layer}.weight", from_parts(found, bits, v1=v1).dequantize()
                except (KeyError, ValueError) as error:
                    raise native.damaged(folder, layer, error) from error
            elif part not in _PARTS:
                yield name, tensors[name].float()


def to_parts(linear: QuantizedLinear, *, v1: bool) -> dict[str, Tensor]:
    """One layer as the layout stores it. Raises `BuildError` for a zero point of 0 in `v1`."""
    zeros = linear.zeros.T.to(torch.int64)
    if v1:
        if int(zeros.min()) == 0:
            raise BuildError("checkpoint_format gptq has no place for a zero point of 0: use v2")
        zeros = zeros - 1
    k = linear.levels.shape[1]
    runs = torch.arange(k, dtype=torch.int32) // linear.group_size
    g_idx = linear.g_idx if linear.g_idx is not None else runs
    return {
        "qweight": packing.pack(linear.levels, linear.bits).T.contiguous(),
        "qzeros": packing.pack(zeros, linear.bits),
        "scales": native.half(linear.scales).T.contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


def from_parts(parts: dict[str, Tensor], bits: int, *, v1: bool) -> QuantizedLinear:
    """One layer from what `to_parts` gave. Raises `ValueError` if the parts do not fit."""
    scales = parts["scales"].T.contiguous()
    n, groups = scales.shape
    g_idx = parts.get("g_idx")
    words = parts["qweight"].T.contiguous()
    k = g_idx.numel() if g_idx is not None else words.shape[1] * 32 // bits
    zeros = packing.unpack(parts["qzeros"], bits, n)
    if v1:
        # After the largest level comes one more, as in AutoGPTQ's own kernels.
        zeros = zeros.to(torch.int16) + 1
    if g_idx is not None and torch.equal(g_idx.long(), torch.arange(k) * groups // k):
        g_idx = None
    levels = packing.unpack(words, bits, k)
    return QuantizedLinear(bits, levels, scales, zeros.T.contiguous(), g_idx)


def _settings(folder: Path) -> tuple[int, bool]:
    settings = read_config(folder).get("quantization_config")
    if settings is None and (folder / QUANTIZE_CONFIG).is_file():
        settings = read_config(folder, QUANTIZE_CONFIG)
    settings = settings or {}
    bits = settings.get("bits")
    if settings.get("quant_method", "gptq") != "gptq" or bits not in BITS:
        raise CheckpointError(
            f"{folder} declares {settings.get('quant_method')!r} with {bits!r} bits: need gptq "
            f"with one of {BITS}"
        )
    kind = settings.get("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"{folder}: need checkpoint_format gptq or gptq_v2, have {kind!r}")
    return int(bits), kind == "gptq"
