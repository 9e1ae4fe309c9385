"""A pipeline's report: `pipeline.html`, `pipeline.md`, `pipeline.json`, from evidence alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serve_app.domain.errors import ConfigError
from serve_app.pipeline.carry_out import CAMPAIGN, QUALITY, QUALITY_JSON, SERVE_YAML
from serve_app.pipeline.checklist import Done, Evidence, Item, StageEvidence, checklist
from serve_app.pipeline.decide import Do
from serve_app.pipeline.evidence import folders_of
from serve_app.pipeline.findings import Recommended
from serve_app.pipeline.gates import Outcome
from serve_app.pipeline.runner import PipelineResult
from serve_app.pipeline.schema import Recommend
from serve_app.pipeline.state import StageRecord
from serve_app.store.manifest import write_whole

FORMAT = 1
JSON, MARKDOWN, HTML = "pipeline.json", "pipeline.md", "pipeline.html"


@dataclass(frozen=True)
class StageLine:
    """One stage as the report shows it. `record` None: it has not run, or must run again."""

    name: str
    does: str
    record: StageRecord | None
    outcome: Outcome | None

    @property
    def said(self) -> str:
        """`pass`, another verdict, `error`, or `not done`."""
        if self.outcome is not None:
            return str(self.outcome.verdict)
        return "error" if self.record is not None else str(Done.NOT_DONE)


@dataclass(frozen=True)
class PipelineReport:
    """All that the views show."""

    result: PipelineResult
    evidence: Evidence
    items: tuple[Item, ...]
    lines: tuple[StageLine, ...]

    @property
    def recommended(self) -> Recommended | None:
        """The recommendation, if the pipeline came to it."""
        found = [s.findings.recommended for s in self.evidence.stages if s.findings.recommended]
        return found[-1] if found else None

    @property
    def last_load(self) -> Path | None:
        """The folder of the last campaign."""
        names = [s.name for s in self.evidence.stages if s.findings.load is not None]
        folders = folders_of(self.result.file, self.result.out)
        return folders[names[-1]] / CAMPAIGN if names else None

    @property
    def answer(self) -> tuple[str, str]:
        """The headline, and its tone: a verdict."""
        decision, recommended = self.result.decision, self.recommended
        if decision.do is Do.STOP:
            line = next(each for each in self.lines if each.name == decision.name)
            tone = "fail" if line.said == "fail" else "inconclusive"
            return f"Stopped at {decision.name}: {line.said}", tone
        if decision.name:
            return f"Stopped after {decision.name}, as asked", "inconclusive"
        if recommended is not None and recommended.chosen is None:
            return f"Every stage ran; {recommended.answer.lower()}", "inconclusive"
        is_ticked = all(item.done is Done.DONE for item in self.items)
        verdict = recommended.answer if recommended is not None else "Every stage was passed"
        return verdict, "pass" if is_ticked else "inconclusive"


def report_of(result: PipelineResult) -> PipelineReport:
    """What a result comes to; pure."""
    folders = folders_of(result.file, result.out)
    lines = tuple(
        StageLine(
            step.name, _does(result, step.name), result.records.get(step.name),
            result.outcome(step.name),
        )
        for step in result.steps
    )  # fmt: skip
    stages = tuple(
        StageEvidence(each.name, each.record.findings, each.outcome, folders[each.name].name)
        for each in lines
        if each.record is not None and each.record.findings is not None and each.outcome is not None
    )
    evidence = Evidence(result.file.pipeline.variants, stages)
    return PipelineReport(result, evidence, checklist(evidence), lines)


def write_report(result: PipelineResult) -> tuple[Path, ...]:
    """Write every view into the run's folder, over those of before. Raises ConfigError."""
    # matplotlib takes a second to import
    from loadtests.report.figures.style import save_png, style
    from serve_app.pipeline.markdown import render_markdown
    from serve_app.pipeline.page import render_page
    from serve_app.pipeline.pictures import draw_pictures

    report, out = report_of(result), result.out
    try:
        with style():
            pictures = draw_pictures(report)
            drawn = [save_png(picture, out) for picture in pictures]
            texts = {HTML: render_page(report, pictures)}
        texts[MARKDOWN] = render_markdown(report, [path.name for path in drawn])
        texts[JSON] = encode(report).decode()
        for name, text in texts.items():
            write_whole(out / name, text)
    except OSError as error:
        raise ConfigError(f"cannot write into {out}: {error.strerror}") from None
    return tuple(out / name for name in texts)


def encode(report: PipelineReport) -> bytes:
    """`pipeline.json`."""
    result, recommended = report.result, report.recommended
    answer, tone = report.answer
    content = {
        "format": FORMAT,
        "model": result.file.pipeline.model,
        "base": result.file.pipeline.base,
        "answer": answer,
        "tone": tone,
        "exit_status": result.exit_status,
        "decision": {
            "do": result.decision.do,
            "stage": result.decision.name or None,
            "reason": result.decision.reason,
        },
        "chosen": recommended and recommended.chosen,
        "checklist": report.items,
        "stages": [_stage_json(each) for each in report.lines],
        "variants": list(report.evidence.made.values()),
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def _stage_json(line: StageLine) -> Mapping[str, object]:
    record, outcome = line.record, line.outcome
    return {
        "name": line.name,
        "does": line.does,
        "verdict": line.said,
        "accepted": outcome is not None and outcome.is_accepted,
        "gates": () if outcome is None else outcome.gates,
        "error": record and record.error,
        "started_at": record and record.started_at,
        "wall_s": record and record.wall_s,
        "files": {} if record is None else record.files,
    }


def _does(result: PipelineResult, name: str) -> str:
    stage = result.file.stage(name)
    return str(stage.do)


@dataclass(frozen=True)
class RecommendationFiles:
    """What a recommendation was made from."""

    asked: Recommend
    run: Path
    quality: Path
    config: Path


def recommendation_files(report: PipelineReport) -> RecommendationFiles | None:
    """None where the pipeline has made no recommendation."""
    file = report.result.file
    asked = file.pipeline.stages[-1]
    if report.recommended is None or not isinstance(asked, Recommend):
        return None
    evidence = file.pipeline.evidence_of(asked)
    if evidence is None:
        return None
    folder = folders_of(file, report.result.out)[evidence.name]
    return RecommendationFiles(
        asked, folder / CAMPAIGN, folder / QUALITY / QUALITY_JSON, folder / SERVE_YAML
    )
