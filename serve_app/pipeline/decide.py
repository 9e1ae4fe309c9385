"""Which stage is next: pure. A stage counts as done while its inputs and its evidence are the same.

Stages run in order. What one found is part of the key of those after it, so that a changed input
invalidates all that follows. A verdict stands until an input changes: a stage that failed its gate
is not rolled again until it passes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serve_app.domain.errors import ConfigError
from serve_app.domain.verdict import Verdict
from serve_app.pipeline.findings import MadeVariant
from serve_app.pipeline.gates import GateResult, Outcome, judge
from serve_app.pipeline.schema import Stage
from serve_app.pipeline.state import StageRecord, key_of


@dataclass(frozen=True)
class Step:
    """A stage with all that decides what it will find, gates aside."""

    stage: Stage
    inputs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.name


class Do(StrEnum):
    """What to do now."""

    RUN = "run"
    STOP = "stop"
    """A gate was not passed, or the stage could not run."""
    END = "end"


@dataclass(frozen=True)
class Decision:
    """What to do now, with which stage, and why. `key` is that of a stage to run."""

    do: Do
    name: str = ""
    key: str = ""
    reason: str = ""
    kept: tuple[str, ...] = ()
    """The stages whose evidence still holds, in order."""


@dataclass(frozen=True)
class Position:
    """What is known when the next step is decided."""

    records: Mapping[str, StageRecord]
    broken: Mapping[str, str] = field(default_factory=dict)
    """Stages whose evidence is not as it was recorded, and what is missing or changed."""
    again: Collection[str] = ()
    """Stages that are asked for once more."""
    fresh: Collection[str] = ()
    """Stages that have run in this very call."""
    stop_after: str | None = None


def decide(steps: Sequence[Step], at: Position) -> Decision:
    """The next thing to do."""
    digests: list[str] = []
    kept: list[str] = []
    accepted: list[str] = []
    for step in steps:
        key = key_of(step.inputs, digests)
        record = at.records.get(step.name)
        why = _why_run(step, record, key, at, baseline_of(steps, at.records))
        if why is not None:
            return Decision(Do.RUN, step.name, key, why, tuple(kept))
        assert record is not None
        kept.append(step.name)
        if record.findings is None:
            return Decision(Do.STOP, step.name, key, record.error or "it failed", tuple(kept))
        outcome = outcome_of(step, at.records, steps)
        if outcome is not None and not outcome.is_accepted:
            why = "; ".join(map(objection, outcome.objections[:3]))
            return Decision(Do.STOP, step.name, key, why, tuple(kept))
        accepted += [_named(step, each) for each in (outcome.objections if outcome else ())]
        if step.name == at.stop_after:
            why = f"asked to stop after {step.name}{_still_open(accepted)}"
            return Decision(Do.END, step.name, key, why, tuple(kept))
        digests.append(record.digest())
    why = f"no gate stopped it{_still_open(accepted)}" if accepted else "every stage was passed"
    return Decision(Do.END, reason=why, kept=tuple(kept))


def _still_open(gates: Sequence[str]) -> str:
    """How many gates the file lets be open, and which."""
    if not gates:
        return ""
    are = "gate is" if len(gates) == 1 else "gates are"
    return f"; {len(gates)} {are} open, as the file accepts: {', '.join(dict.fromkeys(gates))}"


def _named(step: Step, gate: GateResult) -> str:
    who = f" of {gate.variant}" if gate.variant else ""
    return f"{gate.gate}{who} ({step.name})"


def _why_run(
    step: Step,
    record: StageRecord | None,
    key: str,
    at: Position,
    baseline: MadeVariant | None,
) -> str | None:
    """Why a stage has to run (again); None: what it found still holds."""
    if record is None:
        return "it has not run yet"
    if step.name in at.fresh:
        return None
    if step.name in at.again:
        return "asked for again"
    if record.key != key:
        return "its inputs changed"
    if step.name in at.broken:
        return f"its evidence is not as it was: {at.broken[step.name]}"
    if record.findings is None:
        return "it could not run before"
    if judge(step.stage, record.findings, baseline).verdict is Verdict.ERROR:
        return "its evidence could not be used"
    return None


def outcome_of(
    step: Step, records: Mapping[str, StageRecord], steps: Sequence[Step]
) -> Outcome | None:
    """The verdict on what a stage found; None where it found nothing."""
    record = records.get(step.name)
    if record is None or record.findings is None:
        return None
    return judge(step.stage, record.findings, baseline_of(steps, records))


def baseline_of(steps: Sequence[Step], records: Mapping[str, StageRecord]) -> MadeVariant | None:
    """The baseline, which the first stage makes."""
    first = records.get(steps[0].name)
    made = first.findings.made if first is not None and first.findings is not None else ()
    return made[0] if made else None


def require_known(steps: Sequence[Step], names: Collection[str], option: str) -> None:
    """Raise ConfigError for a stage that the pipeline does not have."""
    known = [step.name for step in steps]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{option} {', '.join(unknown)}: need one of {', '.join(known)}")


def objection(each: GateResult) -> str:
    """One gate that was not passed, in one line."""
    who = f" of {each.variant}" if each.variant else ""
    why = f" ({each.reason})" if each.reason else ""
    return f"{each.gate}{who}: {each.verdict}, need {each.need}, have {each.figure}{why}"
