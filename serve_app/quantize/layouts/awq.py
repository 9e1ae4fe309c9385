"""AutoAWQ's "gemm" layout: what TheBloke's "AWQ" repositories hold. 4 bits only.

Per layer of N x K weights: `qweight` int32 `[K, N/8]` and `qzeros` int32 `[G, N/8]`, both packed
along the output channels, of each eight the channels 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits
up; `scales` fp16 `[G, N]`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.quantize.layouts import bits as packing
from serve_app.quantize.layouts import native
from serve_app.quantize.layouts.linear import QuantizedLinear
from serve_app.quantize.layouts.shards import open_tensors, read_config, write_json, write_tensors

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which output channel of eight stands in each nibble, from the lowest up."""

_INVERSE = tuple(ORDER.index(i) for i in range(8))
_PARTS = ("qweight", "qzeros", "scales")


def write(source: Path, out: Path) -> None:
    """Re-pack a compressed-tensors checkpoint: weights and config.json.

    Symmetric weights get their zero points written out. Raises `BuildError` for what the layout
    cannot say: layers of different precision, other than 4 bits, groups by activation order, scales
    beyond fp16, output channels that are not a multiple of 8.
    """
    common = native.common_precision(source)
    if common.bits != BITS or common.reordered:
        raise BuildError(
            f"{source} has {common.bits}-bit weights"
            + (" in groups by activation order" if common.reordered else "")
            + ": AWQ's layout has 4 bits, in groups of neighbouring input channels"
        )
    settings: dict[str, Any] = {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": common.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(common.kept) or None,
    }

    def layer_parts(layer: str, linear: QuantizedLinear) -> dict[str, Tensor]:
        native.require_whole_words(layer, linear, linear.levels.shape[0])
        return to_parts(linear)

    write_tensors(out, native.repacked(source, layer_parts))
    write_json(out / "config.json", native.config_with(source, settings))


def dequantize(folder: Path) -> dict[str, Tensor]:
    """Every weight in fp32 under Hugging Face's name. Raises `CheckpointError`."""
    return dict(stream(folder))


def stream(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The same one by one: what is stored is read when it is asked for."""
    settings = read_config(folder).get("quantization_config") or {}
    bits, version = settings.get("bits"), str(settings.get("version", "gemm")).lower()
    if (settings.get("quant_method"), bits, version) != ("awq", BITS, "gemm"):
        raise CheckpointError(
            f"{folder} declares {settings.get('quant_method')!r} with {bits!r} bits, version "
            f"{version!r}: need awq with {BITS} bits, version gemm"
        )
    with open_tensors(folder) as tensors:
        for name in tensors:
            layer, _, part = name.rpartition(".")
            if part == "qweight":
                try:
                    found = {
                        key: tensors[f"{layer}.{key}"]
                        for key in _PARTS
                        if key != "qzeros" or f"{layer}.qzeros" in tensors
                    }
                    yield f"{layer}.weight", from_parts(found).dequantize()
                except (KeyError, ValueError) as error:
                    raise native.damaged(folder, layer, error) from error
            elif part not in _PARTS:
                yield name, tensors[name].float()


def to_parts(linear: QuantizedLinear) -> dict[str, Tensor]:
    """One layer as the layout stores it."""
    return {
        "qweight": _pack(linear.levels.T.contiguous()),
        "qzeros": _pack(linear.zeros.T.contiguous()),
        "scales": native.half(linear.scales).T.contiguous(),
    }


def from_parts(parts: dict[str, Tensor]) -> QuantizedLinear:
    """One layer from what `to_parts` gave. Raises `ValueError` if the parts do not fit."""
    scales = parts["scales"].T.contiguous()
    n = scales.shape[0]
    levels = _unpack(parts["qweight"], n).T.contiguous()
    zeros = _unpack(parts["qzeros"], n).T.contiguous() if "qzeros" in parts else None
    return QuantizedLinear(BITS, levels, scales, zeros)


def _pack(values: Tensor) -> Tensor:
    rows = values.shape[0]
    return packing.pack(values.view(rows, -1, 8)[..., list(ORDER)].reshape(rows, -1), BITS)


def _unpack(words: Tensor, count: int) -> Tensor:
    rows = words.shape[0]
    values = packing.unpack(words, BITS, count)
    return values.view(rows, -1, 8)[..., list(_INVERSE)].reshape(rows, -1)
