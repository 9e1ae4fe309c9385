"""The exact versions of the quantizers' environment, from constraints.txt."""

import sys
from importlib.metadata import version
from pathlib import Path

from serve_app.domain.errors import BuildError

QUANTIZERS = ("llmcompressor", "compressed-tensors", "torch", "transformers", "gguf", "xllamacpp")
"""Libraries whose version decides the weights: they are part of a variant's cache key."""

_CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def pinned_versions() -> dict[str, str]:
    """Public version of each of `QUANTIZERS`: `2.13.0` for `2.13.0+cpu`."""
    pins: dict[str, str] = {}
    for line in _CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name, separator, pinned = line.partition("==")
        if separator and name in QUANTIZERS:
            pins[name] = public_version(pinned)
    return pins


def public_version(full: str) -> str:
    """Without the local part, which names the build (`+cpu`, `+cu130`) and not the code."""
    return full.partition("+")[0]


def check_versions() -> None:
    """Raise `BuildError` unless this environment has the pinned versions.

    The cache's key is made of those, so they have to be what runs.
    """
    pins = pinned_versions()
    wrong = {
        name: version(name) for name in QUANTIZERS if public_version(version(name)) != pins[name]
    }
    if wrong:
        have = ", ".join(f"{name} {installed}" for name, installed in wrong.items())
        need = ", ".join(f"{name} {pins[name]}" for name in wrong)
        raise BuildError(
            f"the quantizers' environment ({sys.prefix}) has {have}; need {need}: "
            "install it again from serve_app/quantize/constraints.txt"
        )
