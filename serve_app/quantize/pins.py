"""The exact versions of the quantizers' environment, from constraints.txt."""

from pathlib import Path

QUANTIZERS = ("llmcompressor", "compressed-tensors", "torch", "transformers")
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
