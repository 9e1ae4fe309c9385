"""A pipeline's checklist in the terminal; the report has the rest."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from loadtests.report.terminal import new_table
from serve_app.pipeline.checklist import Done
from serve_app.pipeline.report import PipelineReport
from serve_app.pipeline.tables import MARKS

_STYLES = {
    Done.DONE: "green",
    Done.FAILED: "red",
    Done.INCONCLUSIVE: "yellow",
    Done.NOT_DONE: "yellow",
}


def print_report(
    report: PipelineReport, written: Sequence[Path], seconds: float, console: Console
) -> None:
    """The checklist, the answer, and where the report is."""
    table = new_table("Production checklist")
    for header in ("item", "state", "figure"):
        table.add_column(header)
    for item in report.items:
        text = f"{item.figure} ({item.reason})" if item.reason else item.figure
        table.add_row(
            escape(item.title),
            f"[{_STYLES[item.done]}]{escape(MARKS[item.done])}[/]",
            escape(text),
        )
    console.print(table)
    answer, tone = report.answer
    style = {"pass": "bold green", "fail": "bold red"}.get(tone, "bold yellow")
    console.print(answer, style=style, markup=False, highlight=False, soft_wrap=True)
    for text in (report.result.decision.reason, *(_sentences(report))):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {written[0]}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Pipeline took {seconds:.0f} s.", markup=False, highlight=False)


def _sentences(report: PipelineReport) -> tuple[str, ...]:
    return report.recommended.sentences if report.recommended is not None else ()
