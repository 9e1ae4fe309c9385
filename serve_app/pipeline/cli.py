"""`quantile pipeline`: from a base checkpoint to the variant to ship, gate by gate."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def pipeline(
    file: Annotated[Path, typer.Argument(help="A file of configs/pipelines/.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; the same folder resumes it. Default reports/pipeline-<name>."
        ),
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option(help="End after this stage; the same command goes on later.")
    ] = None,
    again: Annotated[
        list[str] | None,
        typer.Option(help="A stage to run once more, and with it what follows; repeat."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the file and what it needs; start nothing.")
    ] = False,
) -> None:
    """Make variants, serve, judge and load them gate by gate, and recommend one: a checklist with
    evidence.

    Stops at the first gate that is not passed. Run again, it goes on where it stopped: stages whose
    inputs and evidence are as they were are not repeated, and a verdict stands until an input
    changes (or --again). Another bar for a gate needs no new measurement. Ctrl-C leaves the stage
    that is on as not done.

    Exit status: 0 no gate stopped it (those that stay open under on_inconclusive: continue are
    named), 1 one failed, 2 wrong input, 3 too little evidence, or broken.

    Examples:

        quantile pipeline configs/pipelines/reference.yaml

        quantile pipeline configs/pipelines/reference.yaml --check

        quantile pipeline configs/pipelines/smoke.yaml --stop-after measure

        quantile pipeline configs/pipelines/reference.yaml --again validate-4-bit
    """
    folder = out or Path("reports") / f"pipeline-{file.stem}"
    if check:
        _check(file, folder)
    else:
        raise typer.Exit(_run(file, folder, stop_after, tuple(again or ())))


def _check(file: Path, folder: Path) -> None:
    from serve_app.pipeline.pipeline_file import read_pipeline, steps_of
    from serve_app.pipeline.preflight import check_ready

    console = Console(markup=False, highlight=False)
    known = read_pipeline(file)
    check_ready(known, steps_of(known), folder, console)
    console.print(f"{file} is sound")


def _run(file: Path, folder: Path, stop_after: str | None, again: tuple[str, ...]) -> int:
    """The exit status."""
    from serve_app.pipeline.pipeline_file import read_pipeline
    from serve_app.pipeline.preflight import check_ready
    from serve_app.pipeline.real_tools import RealTools
    from serve_app.pipeline.report import report_of, write_report
    from serve_app.pipeline.runner import Asked, run_pipeline
    from serve_app.pipeline.terminal import print_report

    console = Console()
    began = time.monotonic()
    result = run_pipeline(
        read_pipeline(file),
        folder,
        RealTools(console),
        Asked(stop_after, again),
        console=console,
        preflight=lambda of, left: check_ready(of, left, folder, console),
    )
    written = write_report(result)
    print_report(report_of(result), written, time.monotonic() - began, console)
    return result.exit_status
