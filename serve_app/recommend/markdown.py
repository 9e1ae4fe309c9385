"""`recommendation.md`: what the page says, for reviews and chats."""

from collections.abc import Sequence

from loadtests.report.markdown import escaped, items, titled
from serve_app.recommend.page import answer_of, change_text, terms_text
from serve_app.recommend.report import Report
from serve_app.recommend.tables import (
    choice_table,
    measured_table,
    packing_table,
    ranking_table,
    standing_lines,
    variant_table,
)


def render_markdown(report: Report, pictures: Sequence[str]) -> str:
    """The report as Markdown; `pictures` are files beside it."""
    found, change = report.recommendation, report.change
    tables = (
        ranking_table(report),
        choice_table(report),
        variant_table(report),
        measured_table(report),
    )
    parts = [
        f"# Recommendation: {escaped(report.evidence.model)}",
        f"**{escaped(answer_of(report))}.** {escaped(' '.join(found.sentences))}",
        escaped(f"{terms_text(report)}."),
        items(found.remarks),
        items(standing_lines(found)),
        items(f"Measure next: {step}" for step in found.overall.next_steps),
        *(f"![{name.partition('.')[0]}]({name})" for name in pictures),
        *(titled(table) for table in tables if table is not None),
    ]
    if report.no_change is not None:
        parts += ["## The change", escaped(f"None: {report.no_change}")]
    if change is not None:
        packed = packing_table(report)
        parts += ["## The change", escaped(change_text(report))]
        parts += [titled(packed)] if packed is not None else []
        parts += [f"````diff\n{change.diff}````" if change.diff else "The file says it already."]
    parts += ["## Sources", items(report.sources)]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"
