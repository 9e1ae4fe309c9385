"""Read the weights of a checkpoint in any container back as dense matrices."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.domain.errors import CheckpointError

if TYPE_CHECKING:
    import torch

LAYOUTS = {
    "plain": "plain",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptq",
    "awq": "awq",
    "squeezellm": "squeezellm",
    "gguf": "gguf",
}
"""Container -> module of this package, imported when it is asked for."""


def dequantize(folder: Path, container: str) -> "dict[str, torch.Tensor]":
    """The whole checkpoint as fp32 tensors under Hugging Face's names.

    `container` as in `QuantScheme`. Raises `CheckpointError` when it is unknown, or when the files
    are not what it says.
    """
    try:
        module = LAYOUTS[container]
    except KeyError:
        raise CheckpointError(
            f"cannot read weights stored as {container!r} ({folder}): need one of "
            f"{', '.join(LAYOUTS)}"
        ) from None
    tensors: dict[str, torch.Tensor] = import_module(f"{__name__}.{module}").dequantize(folder)
    return tensors
