"""Tensors of a checkpoint folder, one at a time, in one safetensors file or in several."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from serve_app.domain.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""What Hugging Face's own writers put into one file."""


class LazyTensors(Mapping[str, Tensor]):
    """Names to tensors; each look-up reads the tensor anew."""

    def __init__(self, files: dict[str, Any], shard_of: dict[str, str]) -> None:
        self._files = files
        self._shard_of = shard_of

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._shard_of[name]].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of


@contextmanager
def open_tensors(folder: Path) -> Iterator[LazyTensors]:
    """The checkpoint's tensors. Raises `CheckpointError` for a missing or damaged file."""
    files: dict[str, Any] = {}
    shard_of: dict[str, str] = {}
    with ExitStack() as stack:
        for shard in _shards(folder):
            try:
                files[shard] = stack.enter_context(safe_open(folder / shard, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{folder / shard} cannot be read ({error}): copy the checkpoint again"
                ) from error
            shard_of |= dict.fromkeys(files[shard].keys(), shard)
        yield LazyTensors(files, shard_of)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The contents of config.json, or of another JSON object. Raises `CheckpointError`."""
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def write_json(path: Path, content: object) -> None:
    """Write a JSON file as checkpoints have them."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(
    folder: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a checkpoint of one file, or of several and their index; one of them in memory."""
    parts: list[Path] = []
    shard: dict[str, Tensor] = {}
    weight_map: dict[str, int] = {}
    held = total = 0

    def flush() -> None:
        part = folder / f".part-{len(parts)}.safetensors"
        save_file(shard, part, metadata={"format": "pt"})
        parts.append(part)
        shard.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > shard_bytes:
            flush()
            held = 0
        shard[name] = tensor.contiguous()
        weight_map[name] = len(parts)
        held, total = held + size, total + size
    flush()
    if len(parts) == 1:
        parts[0].rename(folder / SINGLE)
        return
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    for part, name in zip(parts, names, strict=True):
        part.rename(folder / name)
    index = {"metadata": {"total_size": total}}
    write_json(
        folder / INDEX, {**index, "weight_map": {k: names[i] for k, i in weight_map.items()}}
    )


def _shards(folder: Path) -> list[str]:
    if not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / INDEX} is not an index of shards ({error!r}): copy the checkpoint again"
        ) from error
