"""A tensor as a checkpoint's header describes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its dtype as safetensors or GGUF names it (`BF16`, `I32`, `Q4_K`), its shape
    (outermost dimension first) and the bytes that it takes in the file."""

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
