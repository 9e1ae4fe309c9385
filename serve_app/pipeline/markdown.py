"""`pipeline.md`: what the page says, for reviews and chats."""

from collections.abc import Sequence

from loadtests.report.markdown import escaped, titled
from loadtests.report.tables import Table, cells
from serve_app.pipeline.page import began_text, sentence
from serve_app.pipeline.report import PipelineReport
from serve_app.pipeline.tables import MARKS, gate_table, stage_table, variant_table


def render_markdown(report: PipelineReport, pictures: Sequence[str]) -> str:
    """The report as Markdown; `pictures` are files beside it."""
    answer, _ = report.answer
    recommended = report.recommended
    sentences = recommended.sentences if recommended is not None else ()
    parts = [
        f"# Pipeline: {escaped(report.result.file.pipeline.model)}",
        f"**{escaped(answer)}.** {escaped(sentence(report.result.decision.reason))} "
        f"{escaped(sentence(began_text(report)))}",
        *(escaped(text) for text in sentences),
        titled(_checklist(report)),
        titled(variant_table(report)),
        *(f"![{name.partition('.')[0]}]({name})" for name in pictures),
        titled(stage_table(report)),
        titled(gate_table(report)),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _checklist(report: PipelineReport) -> Table:
    rows = tuple(
        cells(
            item.title,
            MARKS[item.done],
            item.figure,
            item.reason or "-",
            ", ".join(item.evidence) or "-",
        )
        for item in report.items
    )
    header = ("item", "state", "figure", "reason", "evidence")
    return Table("Production checklist", header, rows)
