"""What a forward pass must give: logprobs on fixed texts, stored beside a variant's weights."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.errors import CheckpointError

REFERENCE_NPZ = "reference.npz"
Values = NDArray[np.generic]
Rows = Sequence[Values]


@dataclass(frozen=True)
class Reference:
    """Per row of n tokens: n - 1 values, for the tokens after the first.

    `logprobs` (nats), `best` (most likely token) and `best_logprobs` come from the variant's
    dequantized weights, `base_logprobs` from the weights before quantization; all by an fp32
    forward pass.
    """

    tokens: Sequence[Sequence[int]]
    logprobs: Rows
    best: Rows
    best_logprobs: Rows
    base_logprobs: Rows


def save_reference(path: Path, reference: Reference) -> None:
    """Write `reference.npz`: flat arrays and the rows' lengths."""
    np.savez_compressed(
        path,
        lengths=np.array([len(row) for row in reference.tokens], dtype=np.int32),
        tokens=np.concatenate([np.asarray(row, dtype=np.int32) for row in reference.tokens]),
        logprobs=np.concatenate(list(reference.logprobs)).astype(np.float32),
        best=np.concatenate(list(reference.best)).astype(np.int32),
        best_logprobs=np.concatenate(list(reference.best_logprobs)).astype(np.float32),
        base_logprobs=np.concatenate(list(reference.base_logprobs)).astype(np.float32),
    )


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote. Raises `CheckpointError`."""
    try:
        with np.load(path) as arrays:
            lengths = arrays["lengths"]
            tokens = np.split(arrays["tokens"], np.cumsum(lengths)[:-1])
            ends = np.cumsum(lengths - 1)[:-1]
            names = ("logprobs", "best", "best_logprobs", "base_logprobs")
            parts = {name: np.split(arrays[name], ends) for name in names}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not a reference that the quantization job wrote ({error}); "
            "run `quantile reference build --force`"
        ) from error
    return Reference(tokens=[row.tolist() for row in tokens], **parts)
