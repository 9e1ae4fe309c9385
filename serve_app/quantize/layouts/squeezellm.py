"""SqueezeLLM checkpoints: written from dense matrices, read back as such."""

import json
from pathlib import Path

from torch import Tensor

from serve_app.domain.errors import CheckpointError
from serve_app.engines.vllm_squeezellm_weights import (
    OUTLIER_TENSORS,
    Outliers,
    column_dtype,
    count_dtype,
    look_up,
    pack,
    require_format,
)
from serve_app.quantize.layouts.plain import read_tensors

_CODES = ".qweight"


def store(
    codes: Tensor, table: Tensor, weight: Tensor, exact: Tensor | None, bits: int
) -> dict[str, Tensor]:
    """The tensors of one layer, by the last part of their names.

    `codes` uint8 `[N, K]`, `table` `[N, 2^bits]`; where `exact` (bool `[N, K]`) is true, `weight`'s
    value is kept beside them. None: the layer has no sparse part at all.
    """
    tensors = {"qweight": pack(codes, bits), "lookup_table": table.half()}
    if exact is not None:
        n_columns = weight.shape[1]
        tensors |= {
            "outlier_counts": exact.sum(1).to(count_dtype(n_columns)),
            "outlier_columns": exact.nonzero()[:, 1].to(column_dtype(n_columns)),
            "outlier_values": weight[exact].half(),
        }
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def dequantize(folder: Path) -> dict[str, Tensor]:
    """The whole checkpoint in fp32 under Hugging Face's names. Raises `CheckpointError`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from error
    bits, has_outliers = require_format(config.get("quantization_config") or {}, str(folder))
    stored = read_tensors(folder)
    dense: dict[str, Tensor] = {}
    parts = (_CODES, ".lookup_table", *(f".{name}" for name in OUTLIER_TENSORS))
    for name, tensor in stored.items():
        if name.endswith(_CODES):
            layer = name.removesuffix(_CODES)
            dense[f"{layer}.weight"] = _layer(folder, stored, layer, bits, has_outliers).float()
        elif not name.endswith(parts):
            dense[name] = tensor.float()
    return dense


def _layer(
    folder: Path, stored: dict[str, Tensor], layer: str, bits: int, has_outliers: bool
) -> Tensor:
    wanted = ["qweight", "lookup_table", *(OUTLIER_TENSORS if has_outliers else ())]
    missing = [name for name in wanted if f"{layer}.{name}" not in stored]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)} of {layer}: copy the checkpoint whole"
        )
    codes, table, *outliers = (stored[f"{layer}.{name}"] for name in wanted)
    if codes.shape[1] % bits or table.shape != (codes.shape[0], 2**bits):
        raise CheckpointError(
            f"{folder}: {layer} has codes {tuple(codes.shape)} and a table {tuple(table.shape)}, "
            f"which are not {bits}-bit weights: take the configuration that belongs to them"
        )
    dense = look_up(codes, table, bits)
    if not outliers:
        return dense
    counts, columns, values = outliers
    return Outliers(counts, columns, values, dense.shape[1]).put_into(dense)
