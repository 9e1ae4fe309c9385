"""Run a pipeline: decide, carry out, write down; until a gate stops it or all are passed."""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from serve_app.domain.errors import ConfigError, QuantileError
from serve_app.domain.verdict import Verdict
from serve_app.pipeline.carry_out import Site, carry_out
from serve_app.pipeline.decide import (
    Decision,
    Do,
    Position,
    Step,
    decide,
    objection,
    outcome_of,
    require_known,
)
from serve_app.pipeline.evidence import damage, digests, folders_of, fresh_folder, sole_use
from serve_app.pipeline.findings import MadeVariant
from serve_app.pipeline.gates import Outcome
from serve_app.pipeline.pipeline_file import PipelineFile, steps_of
from serve_app.pipeline.state import StageRecord, State, read_state, write_state
from serve_app.pipeline.tools import Tools

PIPELINE_YAML = "pipeline.yaml"
EXIT_STATUS = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.ERROR: 3}


@dataclass(frozen=True)
class Asked:
    """What is asked for besides the file."""

    stop_after: str | None = None
    again: Collection[str] = ()


@dataclass(frozen=True)
class Clock:
    """Handed in, so that tests need no time."""

    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], str] = field(default=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class PipelineResult:
    """How far a pipeline came."""

    file: PipelineFile
    out: Path
    steps: tuple[Step, ...]
    records: Mapping[str, StageRecord]
    """Of the stages whose evidence holds: the others count as not done."""
    decision: Decision

    def outcome(self, name: str) -> Outcome | None:
        """The verdict on a stage; None where it found nothing yet."""
        step = next(each for each in self.steps if each.name == name)
        return outcome_of(step, self.records, self.steps)

    @property
    def exit_status(self) -> int:
        """0: no gate stopped it (open ones that the file accepts are named in the decision's
        reason); 1: one failed; 3: too little evidence, or broken.
        """
        if self.decision.do is not Do.STOP:
            return 0
        record = self.records[self.decision.name]
        outcome = self.outcome(self.decision.name)
        return record.exit_code if outcome is None else EXIT_STATUS[outcome.verdict]


Preflight = Callable[[PipelineFile, Sequence[Step]], None]
"""Told the stages that are left, before any of them runs. Raises a QuantileError."""


def run_pipeline(
    file: PipelineFile,
    out: Path,
    tools: Tools,
    asked: Asked = Asked(),
    *,
    console: Console,
    clock: Clock = Clock(),
    preflight: Preflight = lambda file, steps: None,
) -> PipelineResult:
    """Run what has not run yet, in folder `out`. What stops it is in the result's decision.

    Raises ConfigError or CheckpointError before anything runs where that could not work. A stage
    that raises a QuantileError is recorded as such; any other end, a signal among them, leaves its
    stage as not done.
    """
    steps = steps_of(file)
    require_known(steps, [asked.stop_after] if asked.stop_after else [], "--stop-after")
    require_known(steps, asked.again, "--again")
    with sole_use(out):
        run = _Run(file, out, tools, steps, console, clock)
        first = run.decide(asked)
        if first.do is Do.RUN:
            preflight(file, _left(steps, first.name, asked.stop_after))
            shutil.copyfile(file.path, out / PIPELINE_YAML)
        while (decision := run.decide(asked)).do is Do.RUN:
            run.carry_out(decision, is_anew=decision.name in asked.again)
        kept = {name: run.state.stages[name] for name in decision.kept}
        return PipelineResult(file, out, steps, kept, decision)


def _left(steps: Sequence[Step], first: str, last: str | None) -> Sequence[Step]:
    names = [step.name for step in steps]
    end = len(names) if last is None else names.index(last) + 1
    return steps[names.index(first) : end]


class _Run:
    """The state of one call."""

    def __init__(
        self,
        file: PipelineFile,
        out: Path,
        tools: Tools,
        steps: tuple[Step, ...],
        console: Console,
        clock: Clock,
    ) -> None:
        known = read_state(out)
        self.state = known or State(model=file.pipeline.model)
        if self.state.model != file.pipeline.model:
            raise ConfigError(
                f"{out} holds a pipeline of {self.state.model}, not of {file.pipeline.model}: "
                "name another --out"
            )
        self._file, self._out, self._tools, self._steps = file, out, tools, steps
        self._console, self._clock = console, clock
        self._fresh: set[str] = set()
        self._folders = folders_of(file, out)

    def decide(self, asked: Asked) -> Decision:
        """What to do now."""
        stages = self.state.stages
        found = {
            name: damage(record, self._out)
            for name, record in stages.items()
            if name not in self._fresh
        }
        broken = {name: fault for name, fault in found.items() if fault is not None}
        position = Position(stages, broken, asked.again, self._fresh, asked.stop_after)
        return decide(self._steps, position)

    def carry_out(self, decision: Decision, *, is_anew: bool) -> None:
        """Run one stage and write down what came of it."""
        name = decision.name
        number = list(self._folders).index(name) + 1
        self._say(f"[{number}/{len(self._steps)}] {name}: {decision.reason}", style="bold")
        stages = {k: v for k, v in self.state.stages.items() if k != name}
        self._write(msgspec.structs.replace(self.state, stages=stages, running=name))
        folder = self._folders[name]
        fresh_folder(folder, self._out)
        began, started_at = self._clock.monotonic(), self._clock.utc()
        made = self._made(decision.kept)
        site = Site(self._file, self._out, self._tools, self._folders, made, is_anew)
        findings, fault = None, None
        try:
            findings = carry_out(self._file.stage(name), site)
        except QuantileError as error:
            fault = error
        record = StageRecord(
            key=decision.key,
            started_at=started_at,
            wall_s=round(self._clock.monotonic() - began, 3),
            folder=folder.name,
            findings=findings,
            error=None if fault is None else str(fault),
            exit_code=0 if fault is None else fault.exit_code,
            files=digests(folder, self._out),
        )
        stages = {**self.state.stages, name: record}
        self._write(msgspec.structs.replace(self.state, stages=stages, running=None))
        self._fresh.add(name)
        self._tell(name, record)

    def _made(self, kept: Sequence[str]) -> dict[str, MadeVariant]:
        records = (self.state.stages[name] for name in kept)
        return {each.name: each for r in records if r.findings for each in r.findings.made}

    def _write(self, state: State) -> None:
        self.state = state
        write_state(self._out, state)

    def _tell(self, name: str, record: StageRecord) -> None:
        step = next(each for each in self._steps if each.name == name)
        outcome = outcome_of(step, self.state.stages, self._steps)
        if outcome is None:
            self._say(f"{name}: error: {record.error}", style="red")
            return
        for each in outcome.gates:
            if each.verdict is Verdict.PASS:
                who = f" of {each.variant}" if each.variant else ""
                self._say(f"  {each.gate}{who}: pass, {each.figure}")
        for each in outcome.objections:
            self._say(f"  {objection(each)}", style="yellow")
        accepted = ", accepted by the file" if outcome.is_accepted else ""
        accepted = accepted if outcome.verdict is not Verdict.PASS else ""
        self._say(f"{name}: {outcome.verdict}{accepted} after {record.wall_s:.0f} s")

    def _say(self, text: str, *, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
