"""Dense twins: a variant's dequantized weights as a plain checkpoint, labelled as what it is.

A format without a kernel on some machine (2 and 3 bits, 8-bit weights alone, NVFP4, MXFP4, ...) is
served there through its twin, with the variant's exact quality and the dense weights' speed and
memory. So a twin's speed says nothing, and bytes are told from the original: `twin_of` in its
`quantile.json`. Activations are the engine's 16 bits, also where the original quantizes them.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.reference.locate import QUANTIZE_JSON

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".pt")
_OWN = {
    "config.json",
    "quantize_config.json",
    QUANTIZE_JSON,
    "gate.json",
    "README.md",
    "manifest.json",
}
_QUANTIZATION = ("quantization_config", "compression_config")


def write_twin(
    original: Path,
    twin: Path,
    dense: Mapping[str, Tensor],
    *,
    config_of: Path | None = None,
    dtype: str | None = None,
) -> None:
    """Write the twin of the variant in `original` into the empty or missing folder `twin`.

    `dense` is the whole checkpoint under Hugging Face's names (`layouts.dequantize`); `dtype` is
    that of the engine in the variant's record unless given. `config_of` is the folder whose
    config.json describes the model where the variant has none (GGUF: the base). Raises `BuildError`
    when a weight does not fit the dtype, `CheckpointError` when the original lacks its record.
    """
    record = _read_json(original / QUANTIZE_JSON)
    if "twin_of" in record:
        raise CheckpointError(
            f"{original} is a twin itself: make twins of the variant's own folder"
        )
    dtype = dtype or str((record.get("engine") or {}).get("dtype"))
    if dtype not in DTYPES:
        raise BuildError(f"a twin's dtype is one of {', '.join(DTYPES)}; have {dtype!r}")
    tensors = {name: _narrow(name, tensor, dtype) for name, tensor in dense.items()}
    twin.mkdir(parents=True, exist_ok=True)
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    config = _read_json((config_of or original) / "config.json")
    config = {key: value for key, value in config.items() if key not in _QUANTIZATION}
    config.pop("torch_dtype", None)
    _write_json(twin / "config.json", {**config, "dtype": dtype})
    for path in sorted(original.iterdir()):
        if path.is_file() and path.name not in _OWN and not path.name.endswith(_WEIGHTS):
            shutil.copy2(path, twin)
    _write_json(twin / QUANTIZE_JSON, _twin_record(record, original, dtype))


def _twin_record(record: dict[str, Any], original: Path, dtype: str) -> dict[str, Any]:
    """The original's record, with the twin's own storage and what it stands for."""
    scheme = QuantScheme(QuantMethod.UNQUANTIZED, bits=16)
    return {
        **record,
        "summary": f"dequantized twin of {record.get('variant')}: {record.get('summary', '')}",
        "method": scheme.method,
        "scheme": asdict(scheme),
        "engine": {"kind": "vllm", "dtype": dtype},
        "twin_of": {
            "variant": record.get("variant"),
            "method": record.get("method"),
            "scheme": record.get("scheme"),
            "weight_bytes": stored_bytes(original),
            "file_bytes": sum(path.stat().st_size for path in _weights_files(original)),
            "weights_sha256": weights_digest(original),
            "activations": "16 bits, as in every twin",
        },
    }


def stored_bytes(folder: Path) -> int | None:
    """Bytes of the tensors in the folder's safetensors files; None if it has none (GGUF)."""
    sizes = []
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8))
        sizes.append(path.stat().st_size - 8 - header)
    return sum(sizes) if sizes else None


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of the folder's weights files."""
    digest = hashlib.sha256()
    for path in _weights_files(folder):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _weights_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.name.endswith(_WEIGHTS)
    )


def _narrow(name: str, tensor: Tensor, dtype: str) -> Tensor:
    narrow = tensor.to(DTYPES[dtype])
    if not bool(torch.isfinite(narrow).all()):
        largest = float(tensor.abs().max())
        raise BuildError(
            f"{name} has a weight of {largest}, which {dtype} cannot hold: take bfloat16"
            if dtype == "float16" and largest < float("inf")
            else f"{name} is not finite after dequantization: the variant is damaged"
        )
    return narrow.contiguous()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error}): a twin is made of a folder that the quantization job "
            "wrote"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not an object: make the variant again")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
