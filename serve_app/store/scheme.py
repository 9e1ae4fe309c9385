"""How a checkpoint's linear layers are stored, told from its configuration and its tensors."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.tensors import TensorInfo
from serve_app.store.ggml_types import nominal_bits

_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}
_PACKED_SUFFIXES = (".qweight", ".weight_packed")
_QUANTIZED_DTYPES = frozenset({"I8", "U8", "I32", "F8_E4M3", "F8_E5M2"})


def main_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The floating-point type that holds most bytes: embeddings and head, if all else is packed."""
    by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in _DTYPE_NAMES:
            by_dtype[tensor.dtype] += tensor.n_bytes
    return _DTYPE_NAMES[by_dtype.most_common(1)[0][0]] if by_dtype else "unknown"


def declared_scheme(
    place: str, quantization: object, tensors: Mapping[str, TensorInfo]
) -> QuantScheme:
    """The scheme that a `quantization_config` tells, provided that the tensors bear it out.

    Raises CheckpointError, naming the folder `place`, when they contradict each other or when
    QuanTile does not know the quantization.
    """
    quantized = next((name for name, tensor in tensors.items() if _is_quantized(name, tensor)), "")
    if quantization and not quantized and _has_groups(quantization):
        raise CheckpointError(
            f"{place}/config.json has a quantization_config ({_container(quantization)}), but "
            f"all tensors are plain {main_dtype(tensors)}: take the configuration that belongs to "
            "these weights"
        )
    if quantization and quantized:
        return _read_declaration(place, quantization)
    if quantized:
        raise CheckpointError(
            f"{place} has quantized tensors ({quantized}, ...) but neither config.json nor "
            "quantize_config.json says how they are stored; restore the configuration"
        )
    bits = 8 * _bytes_per_element(main_dtype(tensors))
    container = _container(quantization) if quantization else "plain"
    return QuantScheme(
        QuantMethod.UNQUANTIZED, bits=bits, activation_bits=bits, container=container
    )


def gguf_scheme(tensors: Mapping[str, TensorInfo]) -> QuantScheme:
    """The scheme of a GGUF file: its width is that of the type that most of its matrices' bytes
    have, embedding and head aside."""
    by_type: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1 and not name.startswith(("token_embd.", "output.")):
            by_type[tensor.dtype] += tensor.n_bytes
    bits = nominal_bits(by_type.most_common(1)[0][0]) if by_type else 16
    return QuantScheme(QuantMethod.GGUF, bits=bits, container="gguf")


def _is_quantized(name: str, tensor: TensorInfo) -> bool:
    is_linear = name.endswith(".weight") and tensor.dtype in _QUANTIZED_DTYPES
    return is_linear or name.endswith(_PACKED_SUFFIXES)


def _has_groups(quantization: object) -> bool:
    """False where only the KV cache is quantized: compressed-tensors then names no layers."""
    if not isinstance(quantization, dict) or not quantization.get("kv_cache_scheme"):
        return True
    return bool(quantization.get("config_groups"))


def _container(quantization: object) -> str:
    return str(quantization.get("quant_method") if isinstance(quantization, dict) else quantization)


def _read_declaration(place: str, quantization: Any) -> QuantScheme:
    reader = _CONTAINERS.get(_container(quantization))
    if reader is None:
        raise CheckpointError(
            f"{place} is quantized by {_container(quantization)!r}, which QuanTile does not "
            f"serve; known: {', '.join(_CONTAINERS)}"
        )
    try:
        return reader(quantization)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{place}: cannot use the quantization_config of config.json: {error!r}"
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


def _squeezellm(quantization: dict[str, Any]) -> QuantScheme:
    bits = int(quantization["bits"])
    made = quantization.get("checkpoint_format")
    if made != "quantile-1":
        raise ValueError(f"SqueezeLLM weights of checkpoint_format {made!r}, not 'quantile-1'")
    return QuantScheme(QuantMethod.SQUEEZELLM, bits=bits, container="squeezellm")


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
    "squeezellm": _squeezellm,
}
