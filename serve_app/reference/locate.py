"""Where the reference model's variants live on this machine, and how to name one.

Standard library only: the serving side imports this before any engine does.
"""

import os
from pathlib import Path

from serve_app.domain.errors import CheckpointError

SCHEME = "reference://"
TWIN_SUFFIX = "-twin"
"""`reference://gptq-w3-twin`: the dequantized twin of gptq-w3, a plain checkpoint."""
QUANTIZE_JSON = "quantile.json"
"""Beside every variant's weights, by the quantization job: what it is and how it was made."""


def cache_dir() -> Path:
    """`$QUANTILE_HOME`, or `~/.cache/quantile`. Not created here."""
    home = os.environ.get("QUANTILE_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "quantile"


def links_dir() -> Path:
    """Folder of the stable links `reference/<variant>`, one per finished build."""
    return cache_dir() / "reference"


def has_twin(variant: str) -> bool:
    """Whether the variant is served by its dense twin on this machine."""
    return (links_dir() / (variant + TWIN_SUFFIX)).is_dir()


def resolve(uri: str) -> Path:
    """The folder that holds a checkpoint's files.

    `reference://gptq` is a built variant of the reference model; anything else is a path.
    The result has its links resolved: it names the content-addressed folder, so that a rebuild
    under a running engine does not change what the engine reads. Raises `CheckpointError`.
    """
    if uri.startswith(SCHEME):
        variant = uri.removeprefix(SCHEME)
        link = links_dir() / variant
        if not variant or "/" in variant or variant.startswith(".") or not link.is_dir():
            raise CheckpointError(
                f"{uri} is not built: need {link}/config.json; "
                f"run `quantile reference build --only {variant or 'baseline'}`"
            )
        return link.resolve()
    if "://" in uri:
        raise CheckpointError(
            f"cannot open {uri!r} here: need reference://<variant> or a path on this machine"
        )
    path = Path(uri).expanduser()
    is_gguf = path.suffix == ".gguf" and path.is_file()
    if not is_gguf and not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
        raise CheckpointError(
            f"{uri!r} is not a checkpoint: need {path / 'config.json'} or a .gguf file; "
            "give a folder with a Hugging Face checkpoint, a GGUF, or reference://<variant>"
        )
    return path.resolve()
