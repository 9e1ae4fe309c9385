"""`quantile compare A B`: what the comparison of two runs found, for the terminal and for CI."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from loadtests.analyse.compare_runs import RunComparison, RunData, compare_runs
from loadtests.analyse.nouns import Change, RunChange
from loadtests.report.result import read_run, result_of
from loadtests.report.rows import (
    factor_with_interval,
    name_of,
    points_with_interval,
    probability,
    value_of,
)
from loadtests.report.tables import MARKS
from loadtests.report.terminal import STYLES, new_table

HEADER = ("variant", "metric", "A", "B", "B against A", "p", "change")
"""`p` is adjusted for all comparisons of the two runs (Holm)."""


def compare_folders(before: Path, after: Path) -> RunComparison:
    """Compare the run in `after` with that in `before`, from their records.

    Raises ConfigError if one of them is no run's folder.
    """
    return compare_runs(_read(before), _read(after))


def print_comparison(found: RunComparison, console: Console) -> None:
    """Print one table per stage, then what to know of the runs, then the verdict."""
    for stage in dict.fromkeys(each.stage for each in found.changes):
        is_paired = stage in found.paired_stages
        table = new_table(f"{stage}: {'paired by block' if is_paired else 'not paired'}")
        for i, header in enumerate(HEADER):
            table.add_column(header, justify="right" if 1 < i < 6 else "left", no_wrap=True)
        last = None
        for each in found.changes:
            if each.stage == stage:
                variant = "" if each.variant == last else each.variant
                cells = map(escape, (variant, *_cells(each)))
                table.add_row(*cells, style=STYLES[each.change])
                last = each.variant
        console.print(table)
    for note in found.notes:
        console.print(note, style="yellow", markup=False, highlight=False)
    console.print(verdict_of(found), style="bold", markup=False, highlight=False)


def verdict_of(found: RunComparison) -> str:
    """What the exit status says, in words: `WORSE: 2 of 24 metrics (B against A)`."""
    counts = {change: sum(e.change is change for e in found.changes) for change in Change}
    said = ", ".join(f"{n} {change}" for change, n in counts.items() if n) or "nothing to compare"
    if not found.is_valid:
        return f"INVALID: a run says nothing of its server ({said})"
    if found.exit_code == 1:
        return f"WORSE: {said}"
    if found.exit_code == 0:
        return f"NOT WORSE: {said}"
    return f"INCONCLUSIVE: {said}"


def _cells(each: RunChange) -> tuple[str, ...]:
    effect = "-"
    if each.effect is not None:
        write = factor_with_interval if each.kind == "ratio" else points_with_interval
        effect = write(each.effect, each.low, each.high)
    return (
        name_of(each.metric, each.p),
        *(value_of(each.metric, value) for value in each.values),
        effect,
        probability(each.p_adjusted),
        MARKS[each.change],
    )


def _read(folder: Path) -> RunData:
    run = read_run(folder)
    result = result_of(run)
    return RunData(
        manifest=run.manifest,
        campaign=run.campaign,
        cells=run.whole,
        saturation=result.saturation,
        is_valid=result.is_sound,
        is_partial=result.is_partial,
    )
