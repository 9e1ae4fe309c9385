"""The tables of the report as plain data, for the page, the Markdown and the terminal."""

from collections.abc import Iterator

from loadtests.report.tables import Cell, Table
from serve_app.advise.candidates import Status
from serve_app.advise.contrasts import Contrast, Interval
from serve_app.advise.evidence import (
    COST,
    MEMORY,
    Axis,
    Evidence,
    Quality,
    VariantEvidence,
    latency_at,
)
from serve_app.advise.explain import contrast_text
from serve_app.advise.recommendation import Recommendation
from serve_app.advise.words import NOTHING, interval, percent, ratio, size
from serve_app.domain.verdict import Verdict
from serve_app.recommend.report import Report

_TONES = {
    Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.ERROR: "invalid",
}  # fmt: skip
_STATUS = {Status.OPEN: "pass", Status.OUT: "fail", Status.UNKNOWN: "inconclusive"}
_STATUS_TEXT = {Status.OPEN: "qualifies", Status.OUT: "out", Status.UNKNOWN: "not known"}
_CONTRASTS = {
    "better": ("▲ better", "better"), "worse": ("▼ worse", "worse"), "same": ("= same", "same"),
    "not worse": ("≥ not worse", "same"), "not better": ("≤ not better", "same"),
    "open": ("? open", "inconclusive"),
}  # fmt: skip


def tone_of(verdict: Verdict) -> str:
    """The class of a verdict in the page's style sheet."""
    return _TONES[verdict]


def variant_table(report: Report) -> Table:
    """One row per variant: what decides whether it may be chosen."""
    evidence, found = report.evidence, report.recommendation
    levels = [level.name for level in evidence.levels]
    header = (
        "variant", "may be chosen", "on the front", "gate", "quality", "right answers",
        f"loss against {evidence.baseline}", *(f"SLO at {level}" for level in levels),
    )  # fmt: skip
    rows = tuple(_judged(evidence, found, name, levels) for name in evidence.names)
    return Table("How each variant was judged, with 95 % intervals", header, rows)


def _judged(
    evidence: Evidence, found: Recommendation, name: str, levels: list[str]
) -> tuple[Cell, ...]:
    variant = evidence[name]
    standing = next(each for each in found.overall.standings if each.name == name)
    status = Cell(
        _STATUS_TEXT[standing.status], _STATUS[standing.status], "; ".join(standing.reasons) or None
    )
    by = found.front.dominated.get(name)
    front = "yes" if name in found.front.variants else f"no: {by} dominates" if by else NOTHING
    quality = variant.quality
    score, loss = (None, None) if quality is None else (quality.score, quality.loss)
    return (
        Cell(name), status, Cell(front), _verdict(variant.gate), _quality(quality),
        Cell(percent(score)), Cell(percent(loss)), *(_slo(variant, level) for level in levels),
    )  # fmt: skip


def measured_table(report: Report) -> Table:
    """One row per variant: what was measured and planned."""
    evidence = report.evidence
    levels = [level.name for level in evidence.levels]
    header = (
        "variant", *(f"{evidence.metric} at {level}, ms" for level in levels), "weights",
        "a replica takes", "replicas per GPU", "output tokens/s within the SLO",
        "USD per million output tokens",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(variant.name),
            *(Cell(interval(_latency(variant, level))) for level in levels),
            *_resources(variant),
        )
        for variant in evidence.variants
    )
    return Table("What each variant gives and takes, with 95 % intervals", header, rows)


def _quality(quality: Quality | None) -> Cell:
    return Cell(NOTHING) if quality is None else _verdict(quality.verdict, quality.reason)


def _resources(variant: VariantEvidence) -> Iterator[Cell]:
    memory, capacity = variant.memory, variant.capacity
    yield Cell(size(None if memory is None else memory.weight_bytes))
    yield Cell(size(None if memory is None else memory.need_bytes))
    yield Cell(_per_gpu(variant))
    yield Cell(interval(None if capacity is None else capacity.output_tokens_per_s))
    yield Cell(interval(variant.cost_usd_per_million), None, variant.cost_gap)


def _latency(variant: VariantEvidence, level: str) -> Interval | None:
    at = variant.at.get(level)
    return None if at is None else at.latency_ms


def _per_gpu(variant: VariantEvidence) -> str:
    memory = variant.memory
    if memory is None or memory.replicas_per_gpu is None:
        return NOTHING
    if not memory.replicas_per_gpu:
        return f"takes {memory.ranks} {memory.gpu}"
    return f"{memory.replicas_per_gpu} on {memory.gpu}"


def _verdict(verdict: Verdict | None, reason: str | None = None) -> Cell:
    if verdict is None:
        return Cell(NOTHING)
    return Cell(str(verdict), _TONES[verdict], reason or None)


def _slo(variant: VariantEvidence, level: str) -> Cell:
    at = variant.at.get(level)
    if at is None or at.slo is None:
        return Cell(NOTHING)
    text = "invalid" if at.slo is Verdict.ERROR else str(at.slo)
    return Cell(text, _TONES[at.slo], at.reason or None)


def ranking_table(report: Report) -> Table | None:
    """Places per load level; None without a level."""
    evidence = report.evidence
    rankings = {each.level: each for each in report.recommendation.rankings}
    if not rankings:
        return None
    header = ("variant", *(f"{level.name} ({level.load})" for level in evidence.levels))
    rows = []
    for name in evidence.names:
        cells = [Cell(name)]
        for ranking in rankings.values():
            found = next((each for each in ranking.ranks if each.variant == name), None)
            if found is None:
                cells.append(Cell(NOTHING))
                continue
            contrast = evidence.contrast(latency_at(ranking.level), name, evidence.baseline)
            beside = "" if contrast is None else f", {ratio(contrast)} of {evidence.baseline}"
            mark = "?" if found.is_open else ""
            cells.append(Cell(f"{found.place}{mark}{beside}"))
        rows.append(tuple(cells))
    return Table(
        f"Places by {evidence.metric} at each load level: one more than the number of variants "
        "that are decidedly faster; ? where a comparison is open",
        header,
        tuple(rows),
    )


def choice_table(report: Report) -> Table | None:
    """The choice that each load level alone would lead to; None without a level."""
    found = report.recommendation
    if not found.by_level:
        return None
    rows = []
    for choice, front in zip(found.by_level, found.front_by_level, strict=True):
        answer = choice.chosen or (f"{choice.leader} leads" if choice.leader else NOTHING)
        rows.append(
            (
                Cell(", ".join(choice.levels)),
                Cell(str(choice.verdict), _TONES[choice.verdict]),
                Cell(answer),
                Cell(", ".join(front.variants) or NOTHING),
                Cell("; ".join(f"{a} by {b}" for a, b in front.dominated.items()) or NOTHING),
                Cell("; ".join(choice.open_questions) or NOTHING),
            )
        )
    header = ("load level", "verdict", "choice", "front", "dominated", "open questions")
    return Table(f"The choice for {found.terms.goal} at each load level alone", header, tuple(rows))


def contrast_table(report: Report) -> Table:
    """Every pair on every axis, with what is decided."""
    rows = tuple(
        _contrast(axis, each)
        for axis, contrasts in report.evidence.contrasts.items()
        for each in contrasts
    )
    header = ("axis", "first", "second", "first is", "first / second, or difference", "why")
    return Table("Every pair, axis by axis", header, rows, n_names=3)


def _contrast(axis: Axis, each: Contrast) -> tuple[Cell, ...]:
    text, tone = _CONTRASTS[contrast_text(each)]
    effect = ratio(each) if axis in (COST, MEMORY) or axis.level else _difference(each)
    return (
        Cell(str(axis)), Cell(each.first), Cell(each.second), Cell(text, tone), Cell(effect),
        Cell(each.reason or NOTHING),
    )  # fmt: skip


def _difference(each: Contrast) -> str:
    if each.gain is None:
        return NOTHING
    ends = ["…" if end is None else f"{100 * end:+.2f}" for end in (each.low, each.high)]
    return f"{100 * each.gain:+.2f} [{', '.join(ends)}] points"


def packing_table(report: Report) -> Table | None:
    """GPUs that hold the same; None without GPUs."""
    change = report.change
    if change is None or not change.packing:
        return None
    rows = tuple(
        (
            Cell(each.gpu),
            Cell(f"{each.count:,}"),
            Cell(", ".join(f"{count} x {name}" for name, count in each.replicas.items())),
            Cell(f"{each.used_bp / 100:.1f} %"),
        )
        for each in change.packing
    )
    return Table("The packing of the variant set", ("GPU", "count", "replicas", "used"), rows)


def standing_lines(found: Recommendation) -> Iterator[str]:
    """Why each variant that may not be chosen may not."""
    for each in found.overall.standings:
        if each.status is not Status.OPEN:
            yield f"{each.name} ({_STATUS_TEXT[each.status]}): {'; '.join(each.reasons)}"
