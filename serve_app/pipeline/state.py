"""`state.json`: which stages have run, on which inputs, and what they found."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serve_app.domain.errors import ConfigError
from serve_app.pipeline.findings import Findings
from serve_app.store.manifest import write_whole

SCHEMA = 1
STATE_JSON = "state.json"


class StageRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage that came to its end. `findings` None: it ended in `error`, and is run again."""

    key: str
    """SHA-256 of everything that it was made from."""
    started_at: str
    """UTC, for people."""
    wall_s: float
    folder: str
    """Of its evidence, relative to the run's."""
    findings: Findings | None = None
    error: str | None = None
    exit_code: int = 0
    """Of the error."""
    files: dict[str, str] = msgspec.field(default_factory=dict)
    """SHA-256 of its evidence: path in the run's folder -> digest."""

    def digest(self) -> str:
        """Another one as soon as anything that it found differs."""
        return _sha256([self.key, self.files, msgspec.to_builtins(self.findings)])


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All stages that have run, by name, in the order in which they did."""

    model: str
    stages: dict[str, StageRecord] = msgspec.field(default_factory=dict)
    running: str | None = None
    """The stage that is on now, or that was cut off: it has to run again."""
    schema: int = SCHEMA


class _Versioned(msgspec.Struct):
    schema: int


def key_of(inputs: Mapping[str, Any], upstream: Sequence[str]) -> str:
    """The key of a stage: its own inputs, and what the stages before it found."""
    return _sha256([dict(inputs), list(upstream)])


def read_state(folder: Path) -> State | None:
    """The state of a run's folder, None where there is none. Raises ConfigError if damaged."""
    path = folder / STATE_JSON
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        schema = msgspec.json.decode(raw, type=_Versioned).schema
        if schema != SCHEMA:
            raise ConfigError(
                f"{path}: need schema {SCHEMA}, have {schema}: name another --out to begin anew"
            )
        return msgspec.json.decode(raw, type=State)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise ConfigError(
            f"{path} is no state of a pipeline ({error}): name another --out to begin anew"
        ) from None


def write_state(folder: Path, state: State) -> None:
    """Whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(state), indent=1).decode()
    write_whole(folder / STATE_JSON, text + "\n")


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
