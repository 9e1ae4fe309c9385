"""The production checklist, filled in from what the stages found: pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.verdict import Verdict
from serve_app.pipeline.findings import Findings, JudgedVariant, LoadRow, MadeVariant
from serve_app.pipeline.gates import GateResult, Outcome, weights_ratio


class Done(StrEnum):
    """What became of one item."""

    DONE = "done"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    NOT_DONE = "not done"
    """There is no evidence, or none that can be used."""


_GRAVEST = (Done.FAILED, Done.NOT_DONE, Done.INCONCLUSIVE, Done.DONE)
_OF = {
    Verdict.PASS: Done.DONE,
    Verdict.FAIL: Done.FAILED,
    Verdict.INCONCLUSIVE: Done.INCONCLUSIVE,
    Verdict.ERROR: Done.NOT_DONE,
}


@dataclass(frozen=True)
class Item:
    """One line of the checklist. `evidence`: files in the run's folder, or on this machine."""

    title: str
    done: Done
    figure: str
    reason: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageEvidence:
    """What one stage found, what its gates said, and where its evidence lies."""

    name: str
    findings: Findings
    outcome: Outcome
    folder: str


@dataclass(frozen=True)
class Evidence:
    """Of the stages whose evidence holds, in their order. `variants`: all that the pipeline
    declares, the baseline first.
    """

    variants: tuple[str, ...]
    stages: tuple[StageEvidence, ...]

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return self.variants[0]

    @property
    def made(self) -> dict[str, MadeVariant]:
        """What was made, by name."""
        return {each.name: each for stage in self.stages for each in stage.findings.made}

    def gates(self, gate: str) -> dict[str, GateResult]:
        """The last result of a gate for each variant; the worst, where a stage asked it often."""
        found: dict[str, GateResult] = {}
        for stage in self.stages:
            here: dict[str, GateResult] = {}
            for each in stage.outcome.gates:
                known = here.get(each.variant)
                if each.gate == gate and (known is None or _worse(each.verdict, known.verdict)):
                    here[each.variant] = each
            found |= here
        return found


def checklist(evidence: Evidence) -> tuple[Item, ...]:
    """Every item, in the order in which a reader asks."""
    return (
        _benchmarked(evidence),
        _quality(evidence),
        _memory(evidence),
        _batches(evidence),
        _tail(evidence),
        _split(evidence),
        _cards(evidence),
        _recommendation(evidence),
    )


def _worse(one: Verdict, other: Verdict) -> bool:
    return _GRAVEST.index(_OF[one]) < _GRAVEST.index(_OF[other])


def _worst(found: Iterable[Done]) -> Done:
    known = set(found)
    return next((each for each in _GRAVEST if each in known), Done.NOT_DONE)


def _benchmarked(evidence: Evidence) -> Item:
    title = "Baseline benchmarked"
    for stage, rows in _loads(evidence):
        mine = [row for row in rows if row.variant == evidence.baseline and row.is_gated]
        if not mine:
            continue
        figure = "; ".join(_latency_of(row) for row in mine)
        where = (f"{stage.folder}/campaign/report.html",)
        invalid = [row.reason for row in mine if not row.is_valid]
        if invalid:
            return Item(title, Done.NOT_DONE, figure, f"invalid: {invalid[0]}", where)
        missed = [row.reason for row in mine if row.slo is Verdict.FAIL]
        done = Done.FAILED if missed else Done.DONE
        return Item(title, done, figure, "".join(missed[:1]), where)
    return Item(title, Done.NOT_DONE, "-", f"no campaign measured {evidence.baseline}")


def _quality(evidence: Evidence) -> Item:
    title = "Quality on a validation set"
    judged: dict[str, tuple[JudgedVariant, str]] = {}
    for stage in evidence.stages:
        for each in stage.findings.quality or ():
            judged[each.name] = (each, stage.folder)
    asked = [*evidence.variants[1:], *(n for n in judged if n == evidence.baseline)]
    states = {name: _OF[judged[name][0].verdict] if name in judged else None for name in asked}
    figures = [_quality_of(judged[name][0]) for name in asked if name in judged]
    reasons = [
        f"{name}: {judged[name][0].reason}"
        for name in asked
        if name in judged and judged[name][0].verdict is not Verdict.PASS
    ]
    folders = dict.fromkeys(folder for _, folder in judged.values())
    return _item(
        title, states, figures, reasons, [f"{each}/quality/quality.json" for each in folders]
    )


def _memory(evidence: Evidence) -> Item:
    title, made = "Memory reduction", evidence.made
    baseline = made.get(evidence.baseline)
    gates = evidence.gates("memory")
    states: dict[str, Done | None] = {}
    figures, reasons = [], []
    for name in evidence.variants[1:]:
        if name not in made or baseline is None:
            states[name] = None
            continue
        ratio = weights_ratio(made[name], baseline)
        figures.append(f"{name} {ratio:.2f} of the baseline ({made[name].weights_bytes:,} bytes)")
        gate = gates.get(name)
        if gate is not None:
            states[name] = _OF[gate.verdict]
        else:  # no bar was set: any reduction is one
            states[name] = Done.DONE if ratio < 1 else Done.FAILED
        if states[name] is not Done.DONE:
            need = gate.need if gate is not None else "less than the baseline"
            reasons.append(f"{name}: need {need}")
    where = [f"{s.folder}/made.json" for s in evidence.stages if s.findings.made]
    return _item(title, states, figures, reasons, where)


def _batches(evidence: Evidence) -> Item:
    """Closed loops: so many requests in flight are the engine's batch."""
    title = "Production batch sizes"
    rows: dict[str, list[LoadRow]] = {}
    folders: dict[str, str] = {}
    for stage, found in _loads(evidence):
        closed = [row for row in found if row.concurrency is not None]
        for name in dict.fromkeys(row.variant for row in closed):
            rows[name] = sorted(
                (row for row in closed if row.variant == name),
                key=lambda row: row.concurrency or 0,
            )
            folders[name] = stage.folder
    states: dict[str, Done | None] = {}
    figures, reasons = [], []
    for name in evidence.variants:
        mine = rows.get(name)
        if not mine:
            states[name] = None
            continue
        sizes = ", ".join(f"{r.output_tokens_per_s:,.0f} at {r.concurrency}" for r in mine)
        figures.append(f"{name} {sizes}")
        bad = [row.reason for row in mine if not row.is_valid or row.n_ok < row.n_planned]
        states[name] = Done.INCONCLUSIVE if bad else Done.DONE
        reasons += [f"{name}: {bad[0] or 'requests failed'}"] if bad else []
    where = [f"{each}/campaign/report.html" for each in dict.fromkeys(folders.values())]
    prefix = ["tokens/s by requests in flight: "] if figures else []
    return _item(title, states, ["".join(prefix) + "; ".join(figures)] if figures else [],
                 reasons, where)  # fmt: skip


def _tail(evidence: Evidence) -> Item:
    title = "P95 and P99 under load"
    rows: dict[str, list[LoadRow]] = {}
    folders: dict[str, str] = {}
    for stage, found in _loads(evidence):
        for name in dict.fromkeys(row.variant for row in found if row.is_gated):
            rows[name] = [row for row in found if row.variant == name and row.is_gated]
            folders[name] = stage.folder
    states: dict[str, Done | None] = {}
    figures, reasons = [], []
    for name in evidence.variants:
        mine = rows.get(name)
        if not mine:
            states[name] = None
            continue
        figures.append(f"{name}: {'; '.join(map(_latency_of, mine))}")
        tails = [_tail_of(row) for row in mine]
        states[name] = _worst(done for done, _ in tails)
        reasons += [f"{name}: {why}" for done, why in tails if done is not Done.DONE][:1]
    where = [f"{each}/campaign/report.html" for each in dict.fromkeys(folders.values())]
    return _item(title, states, figures, reasons, where)


def _tail_of(row: LoadRow) -> tuple[Done, str]:
    if not row.is_valid:
        return Done.NOT_DONE, f"invalid: {row.reason}"
    if row.slo is Verdict.FAIL:
        return Done.FAILED, row.reason
    if not row.has_tail:
        return Done.INCONCLUSIVE, f"{row.n_ok} requests have no P99: more blocks, or longer ones"
    if row.slo is Verdict.INCONCLUSIVE:
        return Done.INCONCLUSIVE, row.reason
    return Done.DONE, ""


def _split(evidence: Evidence) -> Item:
    title = "A/B in staging"
    for stage in reversed(evidence.stages):
        split = stage.findings.split
        if split is None:
            continue
        (gate,) = [each for each in stage.outcome.gates if each.gate == "split"]
        counts = ", ".join(
            f"{each.variant} {each.served} (expected {each.expected})" for each in split.shares
        )
        figure = f"{split.n_requests} sessions through the alias: {counts}"
        return Item(title, _OF[gate.verdict], figure, gate.reason, (f"{stage.folder}/split.json",))
    return Item(title, Done.NOT_DONE, "-", "no validation sent traffic through the alias")


def _cards(evidence: Evidence) -> Item:
    title, made = "Model card, correctness gate passed", evidence.made
    states: dict[str, Done | None] = {}
    reasons, where = [], []
    for name in evidence.variants:
        if name not in made:
            states[name] = None
            continue
        each = made[name]
        states[name] = Done.DONE if each.passed and each.card is not None else Done.FAILED
        if not each.passed:
            reasons.append(f"{name}: {each.gate}")
        if each.card is None:
            reasons.append(f"{name} has no model card")
        else:
            where.append(each.card)
    n = sum(state is Done.DONE for state in states.values())
    return _item(title, states, [f"{n} of {len(states)} variants"], reasons, where)


def _recommendation(evidence: Evidence) -> Item:
    title = "Variant to ship"
    for stage in reversed(evidence.stages):
        found = stage.findings.recommended
        if found is not None:
            why = "; ".join(found.next_steps) if found.verdict is not Verdict.PASS else ""
            where = (f"{stage.folder}/recommendation/recommendation.html",)
            return Item(title, _OF[found.verdict], found.answer, why, where)
    return Item(title, Done.NOT_DONE, "-", "nothing was recommended")


def _loads(evidence: Evidence) -> Iterator[tuple[StageEvidence, tuple[LoadRow, ...]]]:
    for stage in evidence.stages:
        if stage.findings.load is not None:
            yield stage, stage.findings.load.rows


def _latency_of(row: LoadRow) -> str:
    return f"E2E P95 {row.p95}, P99 {row.p99} ms at {row.load}"


def _quality_of(each: JudgedVariant) -> str:
    parts = [] if each.score is None else [f"score {each.score.value:.1%}"]
    if each.loss is not None:
        known = each.loss.low is not None and each.loss.high is not None
        ends = f" [{each.loss.low:+.2%}, {each.loss.high:+.2%}]" if known else ""
        parts.append(f"loss {each.loss.value:+.2%}{ends}")
    if each.abs_delta_logprob is not None:
        parts.append(f"mean |Δlogp| {each.abs_delta_logprob.value:.4f}")
    return f"{each.name} {', '.join(parts) or '-'} over {each.n_items:,} items"


def _item(
    title: str,
    states: Mapping[str, Done | None],
    figures: Sequence[str],
    reasons: Sequence[str],
    evidence: Sequence[str],
) -> Item:
    """One item over variants; those without evidence are named, and leave it not done."""
    missing = [name for name, state in states.items() if state is None]
    known = [state for state in states.values() if state is not None]
    done = _worst([*known, *([Done.NOT_DONE] if missing else [])])
    why = [*reasons, *([f"no evidence of {', '.join(missing)}"] if missing else [])]
    return Item(title, done, "; ".join(figures) or "-", "; ".join(why), tuple(evidence))
