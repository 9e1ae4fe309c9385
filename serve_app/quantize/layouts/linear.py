"""One linear layer's quantized weights, apart from how a checkpoint packs them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """N x K weights as whole levels: weight = (level - zero point) * scale.

    `levels`: uint8 `[N, K]`, 0 to 2**bits - 1. `scales`: float `[N, G]`, one per output channel and
    group of input channels. `zero_points`: integers `[N, G]`; None for symmetric weights, whose
    zero is level 2**(bits - 1). `g_idx`: int `[K]`, the group of each input channel; None where the
    groups are runs of `group_size` = K / G channels.
    """

    bits: int
    levels: Tensor
    scales: Tensor
    zero_points: Tensor | None = None
    g_idx: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` where the shapes do not belong together."""
        n, k = self.levels.shape
        rows, groups = self.scales.shape
        if rows != n or groups < 1 or (self.g_idx is None and k % groups):
            raise ValueError(f"weights {n}x{k} with scales {rows}x{groups}")
        if self.zero_points is not None and self.zero_points.shape != self.scales.shape:
            raise ValueError(
                f"scales {rows}x{groups} with zero points {tuple(self.zero_points.shape)}"
            )
        if self.g_idx is not None:
            if self.g_idx.shape != (k,):
                raise ValueError(f"weights {n}x{k} with a g_idx of shape {tuple(self.g_idx.shape)}")
            if not 0 <= int(self.g_idx.min()) <= int(self.g_idx.max()) < groups:
                raise ValueError(f"g_idx names groups outside 0 to {groups - 1}")

    @property
    def group_size(self) -> int:
        """Input channels that share a scale: K where there is one scale per output channel."""
        return int(self.levels.shape[1]) // int(self.scales.shape[1])

    @property
    def zeros(self) -> Tensor:
        """The zero points, those of symmetric weights written out: integers `[N, G]`."""
        if self.zero_points is not None:
            return self.zero_points
        return torch.full(self.scales.shape, 1 << (self.bits - 1), dtype=torch.uint8)

    def dequantize(self) -> Tensor:
        """fp32 `[N, K]`."""
        n, k = self.levels.shape
        scales, zeros = self.scales.float(), self.zeros.float()
        dense = self.levels.float()
        if self.g_idx is not None:
            order = self.g_idx.long()
            return dense.sub_(zeros[:, order]).mul_(scales[:, order])
        grouped = dense.view(n, scales.shape[1], -1)
        return grouped.sub_(zeros[..., None]).mul_(scales[..., None]).view(n, k)
