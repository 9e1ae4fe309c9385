"""Facts of checkpoints kept in a file beside the configuration, so that a plan can be checked
where the checkpoints cannot be reached.

    {"checkpoints": {"s3://models/llama/awq": {"scheme": {}, "shape": {}, "weights": {}}},
     "format": 1}
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.errors import ConfigError
from serve_app.domain.quant import QuantScheme
from serve_app.planning.facts import CheckpointFacts, WeightBytes
from serve_app.planning.shape import ModelShape

FORMAT = 1
"""Raised whenever a reader of the old form would misread the new one."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    scheme: QuantScheme
    shape: ModelShape
    weights: WeightBytes


class _Lock(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    checkpoints: dict[str, _Entry]


def facts_path(config: Path) -> Path:
    """`configs/prod.facts.json` for `configs/prod.yaml`."""
    return config.with_suffix(".facts.json")


def load_facts(path: Path) -> dict[str, CheckpointFacts]:
    """The facts by checkpoint uri; none where there is no file.

    Raises ConfigError for a file that `save_facts` of this version would not have written.
    """
    try:
        content = msgspec.json.decode(path.read_bytes())
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT:
            raise _unusable(path, f"it has format {version!r}, this version reads {FORMAT}")
        entries = msgspec.convert(content, _Lock).checkpoints
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error)) from None
    facts = {
        uri: CheckpointFacts(uri, entry.shape, entry.scheme, entry.weights)
        for uri, entry in entries.items()
    }
    if _content(facts) != content:  # dataclasses take what they do not know, and fill what lacks
        raise _unusable(path, "it has keys that are unknown, or lacks some")
    return facts


def save_facts(path: Path, facts: Mapping[str, CheckpointFacts]) -> None:
    """Write the facts in one step: readers see the old file or the new one.

    Keys are sorted and each value has its line, so that a change shows as one in review.
    """
    raw = msgspec.json.format(msgspec.json.encode(_content(facts), order="sorted"), indent=2)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(raw + b"\n")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _content(facts: Mapping[str, CheckpointFacts]) -> dict[str, Any]:
    entries = {uri: asdict(fact) for uri, fact in facts.items()}
    for entry in entries.values():
        del entry["uri"]
    content: dict[str, Any] = msgspec.to_builtins({"format": FORMAT, "checkpoints": entries})
    return content


def _unusable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot use {path}: {reason}; delete it, and write it again where the checkpoints can be "
        "reached"
    )
