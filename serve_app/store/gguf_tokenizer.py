"""Which file of a folder is the GGUF to load, and that it can turn text into tokens."""

from pathlib import Path

from serve_app.domain.errors import CheckpointError
from serve_app.store.gguf_header import GgufHeader, LongArray, read_gguf_header
from serve_app.store.source import GGUF_SUFFIX, LocalSource

_MODEL, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"


def gguf_file(place: Path) -> Path:
    """The file itself, or the one GGUF of a folder, or the first part of one that is split.

    Raises CheckpointError when there is none.
    """
    if place.is_file():
        return place
    files = sorted(place.glob(f"*{GGUF_SUFFIX}"))
    if not files:
        raise CheckpointError(
            f"{place} holds no {GGUF_SUFFIX} file: give a GGUF, or make one with "
            "`quantile quantize gguf-q4-k-m --model BASE --out FOLDER`"
        )
    return files[0]


def require_tokenizer(header: GgufHeader, path: str) -> None:
    """Raise CheckpointError for a GGUF that holds weights and no tokenizer."""
    tokens = header.metadata.get(_TOKENS)
    n_tokens = tokens.length if isinstance(tokens, LongArray) else len(tokens or ())  # type: ignore[arg-type]
    if header.metadata.get(_MODEL) in (None, "none", "no_vocab") or not n_tokens:
        raise CheckpointError(
            f"{path} has no tokenizer ({_MODEL} and {_TOKENS}), so llama.cpp cannot read text: "
            "convert the model again with its tokenizer.json beside the weights"
        )


def require_gguf_tokenizer(place: Path) -> None:
    """`require_tokenizer` for a file or a folder on this machine."""
    file = gguf_file(place)
    header = read_gguf_header(LocalSource(file.parent), file.name)
    require_tokenizer(header, str(file))
