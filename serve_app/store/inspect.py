"""Find out what a checkpoint really holds, from its configuration and tensor headers alone."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.checkpoint import Checkpoint, Original
from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme, stored_alike
from serve_app.domain.tensors import TensorInfo
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.store.gguf_config import gguf_config
from serve_app.store.gguf_header import GgufHeader, read_gguf_header
from serve_app.store.safetensors_header import read_header
from serve_app.store.scheme import declared_scheme, gguf_scheme, main_dtype
from serve_app.store.source import GGUF_SHARD, GGUF_SUFFIX, LocalSource, Source, shard_stem

PARALLEL_READS = 8
"""Files whose headers are read at once: a 70B model has some thirty, each a round trip or two."""
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_SAFETENSORS_SUFFIX = ".safetensors"


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


@dataclasses.dataclass(frozen=True)
class CheckpointContents:
    """All that a checkpoint tells without its weights.

    `config` has the keys of a Hugging Face `config.json`, also where the checkpoint is GGUF.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    checkpoint: Checkpoint


def inspect_checkpoint(folder: Path | Source, uri: str | None = None) -> Checkpoint:
    """Describe a checkpoint, reading no weights. Raises CheckpointError as `read_checkpoint`.

    `uri` is what the description calls it, if not its place.
    """
    source = LocalSource(folder) if isinstance(folder, Path) else folder
    checkpoint = read_checkpoint(source).checkpoint
    return checkpoint if uri is None else dataclasses.replace(checkpoint, uri=uri)


def read_checkpoint(source: Source) -> CheckpointContents:
    """Read configuration and tensor headers.

    Raises CheckpointError when the place cannot be read, when the configuration or a file is
    missing or damaged, or when the quantization is one that QuanTile does not know.
    """
    if not any(name.endswith(_SAFETENSORS_SUFFIX) for name in source.sizes):
        ggufs = sorted(name for name in source.sizes if name.endswith(GGUF_SUFFIX))
        if ggufs:
            return _read_gguf(source, ggufs)
    if _CONFIG not in source.sizes:
        raise CheckpointError(
            f"{source.locate(_CONFIG)} is missing (a Hugging Face checkpoint has one); "
            "check the checkpoint's path"
        )
    config = source.read_json(_CONFIG)
    tensors = _read_tensors(source)
    quantization = config.get("quantization_config") or _side_file(source)
    scheme = declared_scheme(_place(source), quantization, tensors)
    return _contents(source, config, tensors, scheme)


def _contents(
    source: Source,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    scheme: QuantScheme,
) -> CheckpointContents:
    record = source.read_json(QUANTIZE_JSON) if QUANTIZE_JSON in source.sizes else None
    recorded = _recorded_method(source, record)
    plain_from_container = scheme.container != "compressed-tensors"
    if recorded is not None and recorded is not scheme.method:
        if not plain_from_container and stored_alike(recorded, scheme.method):
            scheme = dataclasses.replace(scheme, method=recorded)  # same container, same bits
        else:
            raise CheckpointError(
                f"{source.locate(QUANTIZE_JSON)} says {recorded}, but the tensors are "
                f"{scheme.describe()}: the record and the weights do not belong together; "
                "build the checkpoint again"
            )
    checkpoint = Checkpoint(
        uri=source.uri,
        weight_bytes=sum(tensor.n_bytes for tensor in tensors.values()),
        scheme=scheme,
        weight_dtype=main_dtype(tensors),
        context_length=int(config.get("max_position_embeddings") or 0),
        recorded=recorded is not None or plain_from_container,
        twin_of=_original(source, record),
    )
    return CheckpointContents(config, tensors, checkpoint)


def _read_tensors(source: Source) -> dict[str, TensorInfo]:
    if _INDEX in source.sizes:
        try:
            content = msgspec.convert(source.read_json(_INDEX), _ShardIndex)
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f"{source.locate(_INDEX)} needs a weight_map of tensor names to files: {error}"
            ) from None
        shards = sorted(set(content.weight_map.values()))
    else:
        shards = sorted(name for name in source.sizes if name.endswith(_SAFETENSORS_SUFFIX))
    missing = [shard for shard in shards if shard not in source.sizes]
    if missing or not shards:
        raise CheckpointError(
            f"{_place(source)} lacks {', '.join(missing) or 'any .safetensors file'}: copy it whole"
        )
    tensors: dict[str, TensorInfo] = {}
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for header in pool.map(lambda shard: read_header(source, shard), shards):
            tensors.update(header)
    return tensors


def _read_gguf(source: Source, names: list[str]) -> CheckpointContents:
    """One GGUF file, or all the parts of one that is split."""
    first = GGUF_SHARD.fullmatch(names[0])
    is_one = len(names) == 1 or (first and len({shard_stem(name) for name in names}) == 1)
    if not is_one:
        raise CheckpointError(
            f"{_place(source)} holds {len(names)} GGUF files: name the one to serve, such as "
            f"{source.locate(names[0])}"
        )
    if first and len(names) != int(first["count"]):
        raise CheckpointError(
            f"{_place(source)} has {len(names)} of the {first['count']} parts of "
            f"{first['stem']}: copy it whole"
        )
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        headers = list(pool.map(lambda name: read_gguf_header(source, name), names))
    tensors = {name: info for header in headers for name, info in header.tensors.items()}
    whole = GgufHeader(headers[0].metadata, tensors)
    config = gguf_config(whole, source.locate(names[0]))
    return _contents(source, config, tensors, gguf_scheme(tensors))


def _recorded_method(source: Source, record: dict[str, Any] | None) -> QuantMethod | None:
    """The method in our own record of how the checkpoint was made, if there is one."""
    if record is None:
        return None
    method = record.get("method")
    try:
        return QuantMethod(str(method))
    except ValueError:
        raise CheckpointError(
            f"{source.locate(QUANTIZE_JSON)} names method {method!r}; known: "
            f"{', '.join(QuantMethod)}"
        ) from None


def _original(source: Source, record: dict[str, Any] | None) -> Original | None:
    """What the record says that the checkpoint is the dense twin of, if it is one."""
    twin_of = (record or {}).get("twin_of")
    if twin_of is None:
        return None
    try:
        return msgspec.convert(twin_of, Original, strict=False)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{source.locate(QUANTIZE_JSON)} does not say what it is a twin of ({error}): make the "
            "twin again"
        ) from None


def _side_file(source: Source) -> dict[str, Any]:
    """What AutoGPTQ's older place for the configuration holds, if there is one."""
    name = "quantize_config.json"
    return {"quant_method": "gptq", **source.read_json(name)} if name in source.sizes else {}


def _place(source: Source) -> str:
    """The folder, for messages."""
    return source.locate("").rstrip("/")
