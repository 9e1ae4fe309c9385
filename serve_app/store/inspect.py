"""Find out what a checkpoint folder really holds, from `config.json` and tensor headers alone."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.checkpoint import Checkpoint
from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme, stored_alike
from serve_app.domain.tensors import TensorInfo
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.safetensors_header import read_header

_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}
_PACKED_SUFFIXES = (".qweight", ".weight_packed")
_QUANTIZED_DTYPES = frozenset({"I8", "U8", "I32", "F8_E4M3", "F8_E5M2"})


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


def inspect_checkpoint(folder: Path, uri: str | None = None) -> Checkpoint:
    """Describe the checkpoint in `folder`, reading no weights.

    Raises CheckpointError when the folder, its configuration or a shard is missing or damaged, or
    when its quantization is one that QuanTile does not know.
    """
    config = _read_json(folder / "config.json", "a Hugging Face checkpoint has one")
    tensors = _read_tensors(folder)
    scheme = _scheme(folder, config, tensors)
    recorded = _recorded_method(folder)
    plain_from_container = scheme.container != "compressed-tensors"
    if recorded is not None and recorded is not scheme.method:
        if not plain_from_container and stored_alike(recorded, scheme.method):
            scheme = dataclasses.replace(scheme, method=recorded)  # same container, same bits
        else:
            raise CheckpointError(
                f"{folder / QUANTIZE_JSON} says {recorded}, but the tensors are "
                f"{scheme.describe()}: the record and the weights do not belong together; "
                "build the checkpoint again"
            )
    return Checkpoint(
        uri=uri or str(folder),
        weight_bytes=sum(tensor.n_bytes for tensor in tensors.values()),
        scheme=scheme,
        weight_dtype=_main_dtype(tensors),
        context_length=int(config.get("max_position_embeddings") or 0),
        recorded=recorded is not None or plain_from_container,
    )


def _read_json(path: Path, reason: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing ({reason}); check the checkpoint's path")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            content = msgspec.json.decode(index.read_bytes(), type=_ShardIndex)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{index} needs a weight_map of tensor names to files: {error}"
            ) from None
        shards = sorted(set(content.weight_map.values()))
    else:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing or not shards:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing) or 'any .safetensors file'}: copy it whole"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        tensors.update(read_header(folder / shard))
    return tensors


def _recorded_method(folder: Path) -> QuantMethod | None:
    """The method in our own record of how the checkpoint was made, if there is one."""
    path = folder / QUANTIZE_JSON
    if not path.is_file():
        return None
    method = _read_json(path, "record").get("method")
    try:
        return QuantMethod(str(method))
    except ValueError:
        raise CheckpointError(
            f"{path} names method {method!r}; known: {', '.join(QuantMethod)}"
        ) from None


def _main_dtype(tensors: dict[str, TensorInfo]) -> str:
    """The floating-point type that holds most bytes: embeddings and head, if all else is packed."""
    by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in _DTYPE_NAMES:
            by_dtype[tensor.dtype] += tensor.n_bytes
    return _DTYPE_NAMES[by_dtype.most_common(1)[0][0]] if by_dtype else "unknown"


def _scheme(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> QuantScheme:
    """The scheme that the configuration tells, provided that the tensors bear it out."""
    quantization = config.get("quantization_config") or _side_file(folder)
    quantized = next((name for name, tensor in tensors.items() if _is_quantized(name, tensor)), "")
    if quantization and not quantized:
        raise CheckpointError(
            f"{folder / 'config.json'} has a quantization_config ({_container(quantization)}), but "
            f"all tensors are plain {_main_dtype(tensors)}: take the configuration that belongs to "
            "these weights"
        )
    if quantization:
        return _declared_scheme(folder, quantization)
    if quantized:
        raise CheckpointError(
            f"{folder} has quantized tensors ({quantized}, ...) but neither config.json nor "
            "quantize_config.json says how they are stored; restore the configuration"
        )
    bits = 8 * _bytes_per_element(_main_dtype(tensors))
    return QuantScheme(QuantMethod.UNQUANTIZED, bits=bits, activation_bits=bits)


def _side_file(folder: Path) -> dict[str, Any]:
    """What AutoGPTQ's older place for the configuration holds, if there is one."""
    path = folder / "quantize_config.json"
    return {"quant_method": "gptq", **_read_json(path, "AutoGPTQ")} if path.is_file() else {}


def _is_quantized(name: str, tensor: TensorInfo) -> bool:
    is_linear = name.endswith(".weight") and tensor.dtype in _QUANTIZED_DTYPES
    return is_linear or name.endswith(_PACKED_SUFFIXES)


def _container(quantization: object) -> str:
    return str(quantization.get("quant_method") if isinstance(quantization, dict) else quantization)


def _declared_scheme(folder: Path, quantization: dict[str, Any]) -> QuantScheme:
    reader = _CONTAINERS.get(_container(quantization))
    if reader is None:
        raise CheckpointError(
            f"{folder} is quantized by {_container(quantization)!r}, which QuanTile does not "
            f"serve; known: {', '.join(_CONTAINERS)}"
        )
    try:
        return reader(quantization)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: cannot use the quantization_config of config.json: {error!r}"
        ) from None


def _bytes_per_element(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _gptq(quantization: dict[str, Any]) -> QuantScheme:
    return QuantScheme(
        QuantMethod.GPTQ,
        bits=int(quantization["bits"]),
        group_size=_group(quantization.get("group_size")),
        symmetric=bool(quantization.get("sym", True)),
        container="gptq",
    )


def _awq(quantization: dict[str, Any]) -> QuantScheme:
    return QuantScheme(
        QuantMethod.AWQ,
        bits=int(quantization.get("bits", quantization.get("w_bit", 4))),
        group_size=_group(quantization.get("group_size", quantization.get("q_group_size"))),
        symmetric=not quantization.get("zero_point", True),
        container="awq",
    )


def _fp8(quantization: dict[str, Any]) -> QuantScheme:
    return QuantScheme(QuantMethod.FP8, bits=8, activation_bits=8, container="fp8")


def _compressed_tensors(quantization: dict[str, Any]) -> QuantScheme:
    groups = list((quantization.get("config_groups") or {}).values())
    if not groups:
        raise ValueError("compressed-tensors without config_groups")
    schemes = [_group_scheme(group) for group in groups]
    if len({(scheme.method, scheme.bits) for scheme in schemes}) == 1:
        return schemes[0]
    most_bits = max(schemes, key=lambda scheme: scheme.bits)
    return QuantScheme(QuantMethod.MIXED, bits=most_bits.bits, container="compressed-tensors")


def _group_scheme(group: dict[str, Any]) -> QuantScheme:
    weights = group["weights"]
    activations = group.get("input_activations") or {}
    bits, is_float = int(weights["num_bits"]), weights.get("type") == "float"
    activation_bits = int(activations.get("num_bits", 16))
    symmetric = bool(weights.get("symmetric", True))
    if is_float and bits != 8:
        raise ValueError(f"float{bits} weights (NVFP4, MXFP4) are not served")
    if is_float:
        method = QuantMethod.FP8
    elif bits == activation_bits == 8:
        method = QuantMethod.INT8_W8A8
    else:  # GPTQ and AWQ store the same tensors: AWQ is asymmetric by habit
        method = QuantMethod.GPTQ if symmetric else QuantMethod.AWQ
    return QuantScheme(
        method,
        bits=bits,
        activation_bits=activation_bits,
        group_size=_group(weights.get("group_size")),
        symmetric=symmetric,
        container="compressed-tensors",
    )


def _group(value: Any) -> int | None:
    return int(value) if value and int(value) > 0 else None


_CONTAINERS = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
}
