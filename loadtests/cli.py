"""`quantile load`: run a campaign, or report a run again from its raw records."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from loadtests.campaign import load_campaign
from loadtests.report.result import print_table, write_report
from loadtests.run import run_campaign
from serve_app.domain.errors import QuantileError

PIPE_WIDTH = 140

app = typer.Typer(
    name="load",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Open-loop load campaigns with exact percentiles per variant.",
    epilog=(
        "Examples:\n\n"
        "`quantile load run configs/campaigns/smoke.yaml`\n\n"
        "`quantile load run configs/campaigns/compare.yaml --base-url http://10.0.0.5:8000 "
        "--out reports/monday`\n\n"
        "`quantile load report reports/monday`\n\n"
        "With Locust's own UI: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`"
    ),
)


@app.command("run")
def run_command(
    campaign: Annotated[Path, typer.Argument(help="A file of configs/campaigns/.")],
    base_url: Annotated[str | None, typer.Option(help="Replaces target.base_url.")] = None,
    model: Annotated[str | None, typer.Option(help="Replaces target.model.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, new; else reports/<campaign>-<time>")
    ] = None,
) -> None:
    """Run a campaign. Exit status: 0 valid, 1 invalid or partial, 2 wrong input."""
    console = _console()
    try:
        config = load_campaign(campaign)
        changes = {"base_url": base_url, "model": model}
        given = {key: value for key, value in changes.items() if value is not None}
        if given:
            config = config.with_target(**given)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        folder = out or Path("reports") / f"{campaign.stem}-{stamp}"
        result = run_campaign(config, folder, console=console)
    except QuantileError as error:
        raise _failed(error) from error
    print_table(result, console)
    raise typer.Exit(0 if result.is_valid else 1)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
) -> None:
    """Derive report.md, results.json and the pictures again from the raw records."""
    try:
        result = write_report(folder)
    except QuantileError as error:
        raise _failed(error) from error
    print_table(result, _console())


def _console() -> Console:
    """stdout; wide where it is a file or a pipe, which have no width of their own."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _failed(error: QuantileError) -> typer.Exit:
    Console(stderr=True).print(
        f"[red]{error.code}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True
    )
    return typer.Exit(error.exit_code)


if __name__ == "__main__":
    app()
