"""`state.json`: all that a rollout needs to go on after a crash, written whole and to the disk.

A change of the split is written down before it is carried out (`pending`), so that after a crash
between the two the rollout knows either split as its own.
"""

import hashlib
import os
from enum import StrEnum
from pathlib import Path

import msgspec

from serve_app.config.rollout import RolloutConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollout.judge import Standing
from serve_app.splits.live_split import Shares

SCHEMA = 1
STATE_JSON = "state.json"
MOST_POINTS = 600
"""Of the picture; with more, every second one goes."""


class Phase(StrEnum):
    """Where a rollout is."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    INCONCLUSIVE = "inconclusive"
    ABORTED = "aborted"


EXIT_STATUS = {
    Phase.PROMOTED: 0,
    Phase.ROLLED_BACK: 1,
    Phase.INCONCLUSIVE: 3,
    Phase.ABORTED: 1,
}


class Pending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the split that is decided."""

    shares_bp: Shares
    phase: Phase
    """Once it is carried out; RUNNING: then the next step begins."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence at one look. Logarithms are decimal."""

    step: int
    n: int
    """Requests of the candidate since the rollout began."""
    t_s: float
    """Time in steps since the rollout began."""
    against: float
    """Log of the one e-value against the candidate."""
    margins: dict[str, float] = {}
    """By guard: log of the best e-value for "within the margin" in this step."""


class GuardResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one guard saw in one step. Values are in the guard's unit (`Guard`)."""

    guard: str
    n: int
    """Units: pairs, or requests of the smaller arm."""
    excess: float | None
    """Share, or log ratio, of the candidate over the baseline; a LIMIT's own share."""
    against: float
    """Decimal log of the largest of its e-values against the candidate."""
    margin: float
    """Decimal log of the best e-value for "within the margin"."""
    dependence: float
    threshold_s: float | None = None


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """One step that is over."""

    step: int
    shares_bp: Shares
    verdict: str
    reason: str
    n_requests: int
    elapsed_s: float
    guards: tuple[GuardResult, ...] = ()


class RolloutState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    digest: str
    """SHA-256 of the rollout's configuration."""
    original_bp: Shares
    """The split before the rollout."""
    current_bp: Shares
    """The split as the rollout last made or found it."""
    started_at: str
    """UTC, for people."""
    phase: Phase = Phase.RUNNING
    pending: Pending | None = None
    standing: Standing = Standing()
    elapsed_s: float = 0.0
    """In the step that is on, while the command ran."""
    total_s: float = 0.0
    """In the steps that are over."""
    total_n: int = 0
    """Requests of the candidate in the steps that are over."""
    marks: dict[str, int] = {}
    """How far each source of evidence has been read, by its place in the configuration."""
    points: tuple[Point, ...] = ()
    steps: tuple[StepResult, ...] = ()
    schema: int = SCHEMA

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return EXIT_STATUS.get(self.phase)

    def with_point(self, point: Point) -> "RolloutState":
        """With one look more, thinned out where there are many."""
        points = (*self.points, point)
        if len(points) > MOST_POINTS:
            points = (*points[:-1:2], points[-1])
        return msgspec.structs.replace(self, points=points)


def digest_of(config: RolloutConfig) -> str:
    """Another one as soon as anything differs on which decisions depend."""
    text = config.model_dump_json(exclude={"target"})
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(folder: Path) -> RolloutState | None:
    """The state in a rollout's folder, None where there is none. Raises ConfigError if damaged."""
    path = folder / STATE_JSON
    try:
        return msgspec.json.decode(path.read_bytes(), type=RolloutState)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path} is no state of a rollout ({error}): name another --out to begin anew, and see "
            "that the split is what you want"
        ) from None


def write_state(folder: Path, state: RolloutState) -> None:
    """Whole or not at all, and on the disk before this returns. Raises ConfigError."""
    path = folder / STATE_JSON
    aside = path.with_name(f".{STATE_JSON}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)  # the name, too, must outlive a power cut
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
