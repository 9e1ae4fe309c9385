"""Checkpoints that load and are wrong: copies of good ones, broken in one layer chosen by seed.

For 4-bit weights in the layouts of compressed-tensors, AutoGPTQ and AutoAWQ. `reference.npz` is
copied as it is: it goes on saying what the weights should compute.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

_WEIGHT = ("weight_packed", "qweight")
_SCALE = ("weight_scale", "scales")
_ZERO = ("weight_zero_point", "qzeros")


def shuffled_scales(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """The layer's scales, each of them at another's place."""
    name = _part(tensors, layer, _SCALE)
    scales = tensors[name]
    tensors[name] = scales.flatten()[_permutation(scales.numel(), rng)].view(scales.shape)


def wrong_zero_points(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """Every zero point one too small or one too large, as between the two versions of GPTQ."""
    name = _part(tensors, layer, _ZERO)
    step = rng.choice((1, 15))
    tensors[name] = _nibbles(tensors[name], lambda nibble: (nibble + step) & 15)


def swapped_layers(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """All of the layer's tensors exchanged with those of the same layer of another block."""
    _exchange(tensors, layer, rng, ("",))


def swapped_scales(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """The layer's scales exchanged with those of the same layer of another block."""
    _exchange(tensors, layer, rng, _SCALE)


def swapped_zero_points(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """The same for its zero points."""
    _exchange(tensors, layer, rng, _ZERO)


def swapped_nibbles(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """The two values of each byte in the other order."""
    name = _part(tensors, layer, _WEIGHT)
    packed = tensors[name]
    tensors[name] = ((packed >> 4) & 0x0F0F0F0F) | ((packed & 0x0F0F0F0F) << 4)


def permuted_rows(tensors: Tensors, layer: str, rng: random.Random) -> None:
    """Output channels in another order (AWQ: eights of them), their scales where they were."""
    name = _part(tensors, layer, _WEIGHT)
    dim = 0 if name.endswith("weight_packed") else 1
    tensors[name] = tensors[name].index_select(dim, _permutation(tensors[name].shape[dim], rng))


DAMAGES: dict[str, Callable[[Tensors, str, random.Random], None]] = {
    each.__name__: each
    for each in (
        shuffled_scales, wrong_zero_points, swapped_layers, swapped_scales, swapped_zero_points,
        swapped_nibbles, permuted_rows,
    )
}  # fmt: skip


def damage(source: Path, out: Path, kind: str, seed: int) -> str:
    """Copy the checkpoint to the new folder `out` and break one layer of it. Returns which."""
    rng = random.Random(f"{kind}-{seed}")
    shutil.copytree(source, out, symlinks=False)
    weights = out / "model.safetensors"
    tensors = load_file(weights)
    layer = rng.choice(layers(tensors))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    DAMAGES[kind](tensors, layer, rng)
    assert any(not torch.equal(before[name], tensors[name]) for name in before), (kind, layer)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, weights, metadata={"format": "pt"})
    return layer


def layers(tensors: Tensors) -> list[str]:
    """Names of the quantized layers."""
    return sorted(name.rpartition(".")[0] for name in tensors if name.endswith(_WEIGHT))


def _part(tensors: Tensors, layer: str, parts: tuple[str, ...]) -> str:
    return next(name for part in parts if (name := f"{layer}.{part}") in tensors)


def _exchange(tensors: Tensors, layer: str, rng: random.Random, parts: tuple[str, ...]) -> None:
    """What is called `<layer>.<part>...`, with that of the same layer of another block."""
    module = layer.split(".", 3)[3]
    others = [name for name in layers(tensors) if name.split(".", 3)[3] == module and name != layer]
    other = rng.choice(others)
    starts = tuple(f"{layer}.{part}" for part in parts)
    for name in [name for name in tensors if name.startswith(starts)]:
        twin = name.replace(layer, other, 1)
        tensors[name], tensors[twin] = tensors[twin], tensors[name]


def _permutation(size: int, rng: random.Random) -> Tensor:
    order = list(range(size))
    rng.shuffle(order)
    return torch.tensor(order)


def _nibbles(words: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """int32 words with each of their eight nibbles changed."""
    changed = torch.zeros(words.shape, dtype=torch.int64)
    for shift in range(0, 32, 4):
        changed |= change((words.to(torch.int64) >> shift) & 15) << shift
    return torch.where(changed >= 1 << 31, changed - (1 << 32), changed).to(torch.int32)
