"""A result in the terminal: tables that fit in 80 columns; the report has the rest."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtests.analyse.nouns import Change, Verdict
from loadtests.records.manifest import RunFiles
from loadtests.report.findings import (
    clock_of,
    headlines,
    notes_of,
    slo_reasons,
    status_line,
    trust_reasons,
    verdict_line,
)
from loadtests.report.footnotes import under_summary
from loadtests.report.result import CampaignResult
from loadtests.report.rows import TERMINAL_HEADERS, bracket, errors_of, terminal_cells_of
from loadtests.report.stages import stage_rows

STYLES = {
    Change.BETTER: "green",
    Change.WORSE: "red",
    Change.SAME: "dim",
    Change.INCONCLUSIVE: "",
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.INVALID: "yellow",
}
MARKS = {Change.BETTER: "▲", Change.WORSE: "▼"}
"""Set after a number that differs from the baseline's beyond doubt."""
MARKED = (
    ("ttft_user_ms", 0.50),
    ("ttft_user_ms", 0.95),
    ("ttft_user_ms", 0.99),
    ("e2e_user_ms", 0.50),
    ("e2e_user_ms", 0.95),
    ("e2e_user_ms", 0.99),
    ("output_tokens_per_s", None),
)
"""What stands under each of TERMINAL_HEADERS."""
MAX_REASONS = 12
MAX_NOTES = 3


def print_result(result: CampaignResult, console: Console) -> None:
    """Print the tables, who is better, the verdict with its reasons, and where the report is."""
    print_table(result, console)
    if result.saturation:
        print_saturation(result, console)
    else:
        for line in headlines(result):
            console.print(line.text, style=STYLES[line.tone], markup=False, highlight=False)
    _print_reasons(slo_reasons(result), console)
    style = f"bold {STYLES[result.verdict]}"
    console.print(verdict_line(result), style=style, markup=False, highlight=False)
    console.print(f"Report: {RunFiles(result.folder).report_html}", soft_wrap=True, markup=False)


def print_table(result: CampaignResult, console: Console) -> None:
    """Print one table per stage, why rows are invalid, and whether to trust them."""
    columns = result.manifest.columns
    changes = {(c.stage, c.variant, c.metric, c.p): c.change for c in result.comparisons}
    for group in stage_rows(result):
        table = new_table(group.title)
        table.add_column("\nvariant", no_wrap=True)
        for header in (*columns, *TERMINAL_HEADERS):
            table.add_column(_on_two_lines(header), justify="right", no_wrap=True)
        for row in group.rows:
            extra = [cells.get(row.variant, "-") for cells in columns.values()]
            marked = [
                cell + MARKS.get(changes.get((row.stage, row.variant, *key), Change.SAME), "")
                for cell, key in zip(terminal_cells_of(row), MARKED, strict=True)
            ]
            shown = map(escape, (group.label(row), *extra, *marked))
            table.add_row(*shown, style=None if row.is_valid else "yellow")
        console.print(table)
        footnote = under_summary(group)
        if footnote:
            console.print(footnote, style="dim", markup=False, highlight=False)
        for row in group.rows:
            if row.errors:
                text = f"{group.label(row)}: failed: {errors_of(row)}"
                console.print(text, style="red", markup=False, highlight=False)
    _print_reasons(trust_reasons(result), console)
    if any(change in MARKS for change in changes.values()):
        baseline = result.comparisons[0].baseline
        text = f"▲ better, ▼ worse than {baseline}, by paired blocks."
        console.print(text, style="dim", markup=False, highlight=False)
    for note in notes_of(result)[:MAX_NOTES]:
        console.print(f"Note: {note}", style="dim", markup=False, highlight=False)
    text = f"{status_line(result)}. {clock_of(result)}."
    console.print(text, markup=False, highlight=False)


def print_saturation(result: CampaignResult, console: Console) -> None:
    """Print, per variant, the highest rate at which the SLO holds."""
    table = new_table("highest rate at which the SLO holds")
    for header in ("variant", "the SLO", "probes", "verdict", "reason"):
        table.add_column(header)
    for each in result.saturation:
        cells = (each.variant, bracket(each), str(len(each.probes)), each.verdict, each.reason)
        table.add_row(*map(escape, cells), style=STYLES[each.verdict])
    console.print(table)


def _print_reasons(reasons: tuple[str, ...], console: Console) -> None:
    for reason in reasons[:MAX_REASONS]:
        console.print(reason, style="yellow", markup=False, highlight=False)
    if len(reasons) > MAX_REASONS:
        console.print(f"... and {len(reasons) - MAX_REASONS} more in the report", style="yellow")


def new_table(title: str) -> Table:
    """A table as all of ours: no frame, narrow columns, `title` not as markup."""
    return Table(
        title=escape(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _on_two_lines(header: str) -> str:
    """`exact seen` as two lines, `bytes` on the second: columns as narrow as their numbers."""
    upper, space, lower = escape(header).partition(" ")
    return f"{upper}\n{lower}" if space else f"\n{upper}"
