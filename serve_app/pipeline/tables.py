"""The report's tables as plain data; the page and the Markdown render them."""

from loadtests.report.rows import number
from loadtests.report.tables import Cell, Table, cells
from serve_app.domain.units import format_bytes
from serve_app.pipeline.checklist import Done
from serve_app.pipeline.decide import objection
from serve_app.pipeline.gates import weights_ratio
from serve_app.pipeline.report import PipelineReport, StageLine

TONES = {
    Done.DONE: "pass",
    Done.FAILED: "fail",
    Done.INCONCLUSIVE: "inconclusive",
    Done.NOT_DONE: "invalid",
}
MARKS = {
    Done.DONE: "✓ done",
    Done.FAILED: "✗ failed",
    Done.INCONCLUSIVE: "? inconclusive",
    Done.NOT_DONE: "- not done",
}
"""A colour alone says nothing to many readers."""
_VERDICT_TONES = {"pass": "pass", "fail": "fail", "inconclusive": "inconclusive"}


def stage_table(report: PipelineReport) -> Table:
    """One row per stage: what it did, its verdict, and what it objects to."""
    rows = tuple(_stage_row(each) for each in report.lines)
    header = ("stage", "does", "verdict", "seconds", "what it says")
    return Table("Stages, in order", header, rows)


def gate_table(report: PipelineReport) -> Table:
    """Every gate that was asked."""
    rows = tuple(
        (
            *cells(line.name, each.gate, each.variant or "all"),
            Cell(str(each.verdict), _VERDICT_TONES.get(each.verdict, "invalid")),
            *cells(each.figure, each.need, each.reason or "-"),
        )
        for line in report.lines
        if line.outcome is not None
        for each in line.outcome.gates
    )
    header = ("stage", "gate", "variant", "verdict", "have", "need", "reason")
    return Table("Every gate", header, rows, n_names=3)


def variant_table(report: PipelineReport) -> Table:
    """What each variant takes and gives; `-` where it was not measured."""
    evidence = report.evidence
    made, baseline = evidence.made, evidence.made.get(evidence.baseline)
    judged = {j.name: j for stage in evidence.stages for j in stage.findings.quality or ()}
    rows = []
    for name in evidence.variants:
        each, quality = made.get(name), judged.get(name)
        known = quality is not None and quality.loss is not None
        twin = " (runs as its dense twin)" if each is not None and each.is_twin else ""
        rows.append(
            cells(
                name,
                "-" if each is None else f"{each.scheme}{twin}",
                "-" if each is None else format_bytes(each.weights_bytes),
                "-" if each is None or baseline is None else f"{weights_ratio(each, baseline):.3f}",
                f"{quality.loss.value:+.2%}" if known and quality and quality.loss else "-",
                _delta(report, name),
                *_speeds(report, name),
            )
        )
    header = (
        "variant", "scheme", "weights", "of the baseline", "loss of score", "mean |Δlogp|",
        "E2E P95, ms", "E2E P99, ms", "tok/s by requests in flight",
    )  # fmt: skip
    return Table("Variants", header, tuple(rows))


def _stage_row(line: StageLine) -> tuple[Cell, ...]:
    said = line.said
    tone = _VERDICT_TONES.get(said, "invalid")
    text = "-"
    if line.outcome is not None:
        text = "; ".join(map(objection, line.outcome.objections)) or "every gate was passed"
        if line.outcome.is_accepted and line.outcome.objections:
            said += " (accepted)"
        if line.record is not None and line.record.findings and line.record.findings.taken_over:
            names = ", ".join(line.record.findings.taken_over)
            text += f"; answers of {names} are those of the validation before"
    elif line.record is not None:
        text = line.record.error or "-"
    seconds = "-" if line.record is None else f"{line.record.wall_s:,.0f}"
    return (*cells(line.name, line.does), Cell(said, tone), *cells(seconds, text))


def _delta(report: PipelineReport, name: str) -> str:
    for stage in reversed(report.evidence.stages):
        for each in stage.findings.quality or ():
            if each.name == name and each.abs_delta_logprob is not None:
                return f"{each.abs_delta_logprob.value:.4f}"
    return "-"


def _speeds(report: PipelineReport, name: str) -> tuple[str, str, str]:
    """P95 and P99 of the last campaign's first gated stage, tokens/s of its closed loops."""
    for stage in reversed(report.evidence.stages):
        load = stage.findings.load
        mine = [row for row in load.rows if row.variant == name] if load is not None else []
        if not mine:
            continue
        gated = [row for row in mine if row.is_gated]
        sizes = [
            f"{number(row.output_tokens_per_s)} at {row.concurrency}"
            for row in mine
            if row.concurrency is not None
        ]
        p95, p99 = (gated[0].p95, gated[0].p99) if gated else ("-", "-")
        return p95, p99, ", ".join(sizes) or "-"
    return "-", "-", "-"
