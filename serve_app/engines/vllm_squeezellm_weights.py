"""SqueezeLLM's storage: packed codes, a table of levels per output channel, outliers apart.

Of a linear layer with N output and K input channels the checkpoint has

    qweight          uint8   [N, K * bits / 8]   codes, 8 in `bits` bytes, first in the low bits
    lookup_table     float16 [N, 2 ** bits]      the value of each code, ascending
    outlier_counts   int16   [N]                 outliers of each row; int32 if K >= 32768
    outlier_columns  uint8   [n]                 row after row; int16 if K > 256, then int32
    outlier_values   float16 [n]                 replace what the table gives there

The last three only if the configuration says `"outliers": true`. They are a sparse matrix by rows
(CSR) whose row pointers are lengths, so that stacking matrices (q, k and v) is concatenation. A
value replaces, it is not added: fp16 gives back exactly what was stored.

The paper (arXiv 2306.07629) has the same three parts in another packing; its files are not read.
Plain torch: the quantizer's environment and the engine's both run this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.domain.errors import CheckpointError

CHECKPOINT_FORMAT = "quantile-1"
BITS = (3, 4)
CODES = 8
"""Codes that fill whole bytes at any width: K is a multiple of it."""
OUTLIER_TENSORS = ("outlier_counts", "outlier_columns", "outlier_values")


def require_format(quantization: dict[str, Any], place: str) -> tuple[int, bool]:
    """Bits and whether there are outliers, from a `quantization_config`.

    Raises `CheckpointError` for what this code cannot read, such as files of the paper's own code.
    """
    made, bits = quantization.get("checkpoint_format"), quantization.get("bits")
    outliers = quantization.get("outliers")
    if made != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{place} has SqueezeLLM weights of checkpoint_format {made!r}; need "
            f"{CHECKPOINT_FORMAT!r}: make them anew with `quantile quantize`, files of the paper's "
            "own code are packed otherwise"
        )
    if bits not in BITS or not isinstance(outliers, bool):
        raise CheckpointError(
            f"{place} has SqueezeLLM weights with bits {bits!r} and outliers {outliers!r}; need "
            f"bits of {BITS} and outliers true or false"
        )
    return bits, outliers


def column_dtype(n_columns: int) -> torch.dtype:
    """The type of `outlier_columns` of a matrix with that many columns."""
    if n_columns > 2**15:
        return torch.int32
    return torch.int16 if n_columns > 2**8 else torch.uint8


def count_dtype(n_columns: int) -> torch.dtype:
    """The type of `outlier_counts` of a matrix with that many columns."""
    return torch.int16 if n_columns < 2**15 else torch.int32


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes, uint8 `[N, K]`, as bytes `[N, K * bits / 8]`. Raises ValueError."""
    n, k = codes.shape
    if k % CODES:
        raise ValueError(f"need a multiple of {CODES} columns to pack, have {k}")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"need codes below {2**bits} for {bits} bits, have {int(codes.max())}")
    shifts = torch.arange(CODES, device=codes.device) * bits
    words = (codes.view(n, k // CODES, CODES).long() << shifts).sum(-1)
    places = torch.arange(bits, device=codes.device) * 8
    return ((words[..., None] >> places) & 0xFF).to(torch.uint8).view(n, -1)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Back from `pack`: uint8 `[N, K]`."""
    pairs = unpack_pairs(packed, bits)
    codes = torch.stack((pairs & (2**bits - 1), pairs >> bits), dim=-1)
    return codes.view(packed.shape[0], -1)


def unpack_pairs(packed: Tensor, bits: int) -> Tensor:
    """Two codes at a time, uint8 `[N, K / 2]`: the first plus 2^bits times the second.

    With 4 bits that is each byte as it is.
    """
    if bits == 4:
        return packed
    if bits != 3:
        raise ValueError(f"need bits of {BITS}, have {bits}")
    low, middle, high = packed.view(packed.shape[0], -1, 3).unbind(-1)
    pairs = (
        low & 63,
        (low >> 6) | ((middle & 15) << 2),
        (middle >> 4) | ((high & 3) << 4),
        high >> 2,
    )
    return torch.stack(pairs, dim=-1).view(packed.shape[0], -1)


def look_up(packed: Tensor, table: Tensor, bits: int) -> Tensor:
    """The dense matrix `[N, K]` in the table's type, without outliers.

    16-bit tables are read two codes at a time: a row's table of all pairs is made first, whose
    entries are 32 bits wide. Measured 2.7 to 4 times as fast as one code at a time.
    """
    if table.element_size() != 2:
        return table.gather(1, unpack(packed, bits).long())
    level = table.view(torch.int16).int() & 0xFFFF
    pairs = (level[:, :, None] << 16 | level[:, None, :]).view(table.shape[0], -1)
    return pairs.gather(1, unpack_pairs(packed, bits).long()).view(table.dtype)


@dataclass(frozen=True)
class Outliers:
    """The sparse part of a matrix: entries of each row, their columns and values, row after row.

    Raises `CheckpointError` if the three do not belong to one matrix of `n_columns`.
    """

    counts: Tensor
    columns: Tensor
    values: Tensor
    n_columns: int

    def __post_init__(self) -> None:
        counted, n = int(self.counts.sum()), self.columns.numel()
        if counted != n or self.values.numel() != n or bool((self.counts < 0).any()):
            raise CheckpointError(
                f"outlier_counts says {counted} outliers, and there are {n} columns and "
                f"{self.values.numel()} values: the checkpoint is damaged, make it anew"
            )
        if n and not 0 <= int(self.columns.min()) <= int(self.columns.max()) < self.n_columns:
            raise CheckpointError(
                f"outlier_columns has column {int(self.columns.max())} of {self.n_columns}: "
                "the checkpoint is damaged, make it anew"
            )

    @property
    def rows(self) -> Tensor:
        """The row of each entry, int64."""
        numbers = torch.arange(self.counts.numel(), device=self.counts.device)
        return torch.repeat_interleave(numbers, self.counts.long())

    @property
    def places(self) -> Tensor:
        """Where the entries are in the flattened matrix, int64."""
        return self.rows * self.n_columns + self.columns.long()

    def put_into(self, weight: Tensor) -> Tensor:
        """Replace the entries' places in the dense matrix, in place; returns it."""
        weight.view(-1)[self.places] = self.values.to(weight.dtype)
        return weight

    def take_rows(self, rows: Tensor) -> "Outliers":
        """Those of some rows, int64, in that order."""
        counts = self.counts.long()
        starts = counts.cumsum(0) - counts
        lengths = counts[rows]
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(
            lengths.cumsum(0) - lengths, lengths
        )
        entries = torch.repeat_interleave(starts[rows], lengths) + within
        return Outliers(lengths, self.columns[entries], self.values[entries], self.n_columns)

    def take_columns(self, first: int, n_columns: int) -> "Outliers":
        """Those of `n_columns` columns from `first` on, which becomes column 0."""
        columns = self.columns.long() - first
        kept = (columns >= 0) & (columns < n_columns)
        counts = torch.bincount(self.rows[kept], minlength=self.counts.numel())
        return Outliers(counts, columns[kept], self.values[kept], n_columns)


def stack(parts: Sequence[Outliers]) -> Outliers:
    """Those of matrices of equal width, one below the other."""
    widths = {part.n_columns for part in parts}
    if len(widths) != 1:
        raise ValueError(f"need matrices of one width, have {sorted(widths)}")
    return Outliers(
        torch.cat([part.counts.long() for part in parts]),
        torch.cat([part.columns.long() for part in parts]),
        torch.cat([part.values for part in parts]),
        widths.pop(),
    )
