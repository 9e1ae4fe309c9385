"""A run's numbers: in the terminal, as Markdown, as JSON, as pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtests.campaign import Campaign
from loadtests.manifest import SCHEMA_VERSION, Manifest, RunFiles
from loadtests.markdown import render_markdown
from loadtests.prompts import load_prompts
from loadtests.record import read_cell_runs, read_records
from loadtests.rows import TERMINAL_HEADERS, terminal_cells_of
from loadtests.schedule import plan_cells
from loadtests.summary import VariantSummary, summarize


@dataclass(frozen=True)
class CampaignResult:
    """What a campaign found. `is_partial`: it was stopped, and only whole cells count."""

    folder: Path
    manifest: Manifest
    campaign: Campaign
    summaries: tuple[VariantSummary, ...]
    n_cells: int
    n_cells_done: int

    @property
    def is_partial(self) -> bool:
        """Whether cells of the plan are missing."""
        return self.n_cells_done < self.n_cells

    @property
    def is_valid(self) -> bool:
        """Whether the plan ran whole and the client made none of the numbers."""
        return not self.is_partial and all(each.is_valid for each in self.summaries)


def read_result(folder: Path) -> CampaignResult:
    """Derive the result from a run's raw records. Raises ConfigError if there is no run."""
    files = RunFiles(folder)
    manifest = files.read_manifest()
    campaign = manifest.parsed()
    cells = plan_cells(campaign, len(load_prompts(campaign.workload.prompts)))
    runs = tuple(read_cell_runs(files.cells))
    return CampaignResult(
        folder=folder,
        manifest=manifest,
        campaign=campaign,
        summaries=summarize(campaign, cells, read_records(files.records), runs),
        n_cells=len(cells),
        n_cells_done=len(runs),
    )


def write_report(folder: Path) -> CampaignResult:
    """Derive the result and write `results.json`, `report.md` and the pictures beside it."""
    from loadtests.plot import plot_result  # matplotlib takes a second to import

    result = read_result(folder)
    files = RunFiles(folder)
    files.results.write_bytes(msgspec.json.format(msgspec.json.encode(_as_data(result))))
    pictures = plot_result(result.campaign, result.summaries, folder)
    files.report.write_text(
        render_markdown(
            result.manifest, result.campaign, result.summaries, status_line(result), pictures
        ),
        encoding="utf-8",
    )
    return result


def status_line(result: CampaignResult) -> str:
    """Whether the run can be trusted, in one line."""
    if not result.summaries:
        return "NO RESULT: no cell ran to its end"
    invalid = sum(not each.is_valid for each in result.summaries)
    partial = f"PARTIAL: {result.n_cells_done} of {result.n_cells} cells"
    if invalid:
        verdict = f"INVALID: {invalid} of {len(result.summaries)} rows, for the reasons given"
    else:
        verdict = "VALID: the client kept its schedule"
    return f"{partial}; {verdict}" if result.is_partial else verdict


def print_table(result: CampaignResult, console: Console) -> None:
    """Print one table per stage, and why rows are invalid."""
    columns = result.manifest.columns
    for stage in result.campaign.stages:
        rows = [each for each in result.summaries if each.stage == stage.name]
        if not rows:
            continue
        title = f"{stage.name}: {stage.kind} {stage.rate_per_s:g} requests/s"
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
        )
        table.add_column("\nvariant", no_wrap=True)
        for header in (*columns, *TERMINAL_HEADERS):
            table.add_column(_on_two_lines(header), justify="right", no_wrap=True)
        for row in rows:
            extra = [cells.get(row.variant, "-") for cells in columns.values()]
            style = None if row.is_valid else "yellow"
            table.add_row(row.variant, *extra, *terminal_cells_of(row), style=style)
        console.print(table)
    for row in result.summaries:
        for reason in row.invalid_reasons:
            console.print(f"{row.stage} {row.variant}: {reason}", style="yellow", markup=False)
        if row.errors:
            failed = ", ".join(f"{n} {name}" for name, n in row.errors.items())
            console.print(f"{row.stage} {row.variant}: failed: {failed}", style="red", markup=False)
    console.print(f"{status_line(result)}. Latencies in ms from the planned send time.")
    console.print(f"Report: {result.folder / 'report.md'}", soft_wrap=True)


def _on_two_lines(header: str) -> str:
    """`exact seen` as two lines, `bytes` on the second: columns as narrow as their numbers."""
    upper, space, lower = header.partition(" ")
    return f"{upper}\n{lower}" if space else f"\n{upper}"


def _as_data(result: CampaignResult) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status_line(result),
        "is_valid": result.is_valid,
        "is_partial": result.is_partial,
        "manifest": result.manifest,
        "summaries": result.summaries,
    }
