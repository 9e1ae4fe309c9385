"""`quantile loadtest`, `report`, `compare` and `load-worker`."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.analyse.nouns import Verdict
from loadtests.campaign import Campaign, load_campaign
from loadtests.report.result import CampaignResult

PIPE_WIDTH = 140
EXIT_STATUS = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.INVALID: 3}


def loadtest(
    campaign: Annotated[Path, typer.Argument(help="A file of configs/campaigns/.")],
    url: Annotated[str | None, typer.Option(help="Replaces target.base_url.")] = None,
    model: Annotated[str | None, typer.Option(help="Replaces target.model.")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Replaces target.variants; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, new; else reports/<campaign>-<time>.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Load processes here; keep them off the server's cores.")
    ] = 1,
    remote_workers: Annotated[
        int, typer.Option(min=0, help="Wait for this many `quantile load-worker` elsewhere.")
    ] = 0,
    listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT for --remote-workers to connect to. In a trusted network only: "
            "Locust's port has no authentication."
        ),
    ] = None,
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Show the run in Locust's web UI.")
    ] = None,
) -> None:
    """Measure variants under load: P50 to P99.9 with intervals, SLO, paired comparison.

    Open loop: arrivals come from a plan and wait for no answer. Exit status: 0 the SLO holds,
    1 it does not, 2 wrong input, 3 invalid, partial or inconclusive. Ctrl-C, SIGTERM or SIGHUP
    ends the load and leaves a partial report; a second one also drops what is in flight.

    Examples:

    quantile loadtest configs/campaigns/smoke.yaml

    quantile loadtest configs/campaigns/compare.yaml --url http://10.0.0.5:8000 --out reports/monday

    quantile loadtest configs/campaigns/saturation.yaml --variant awq --variant bf16
    """
    from loadtests.run import LoadOptions, run_campaign

    config = _with_target(load_campaign(campaign), url, model, variant)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = out or Path("reports") / f"{campaign.stem}-{stamp}"
    options = LoadOptions(processes, remote_workers, listen, web_port)
    console = _console()
    _finish(run_campaign(config, folder, options=options, console=console), console)


def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Derive a run's report again from its raw records; exit status as `loadtest`.

    Example: quantile report reports/monday
    """
    from loadtests.report.write import write_report

    _finish(write_report(folder), _console())


def compare(
    before: Annotated[Path, typer.Argument(help="The folder of a run.")],
    after: Annotated[Path, typer.Argument(help="The folder of another run.")],
) -> None:
    """Compare two runs, metric by metric: better, worse, same or inconclusive.

    Blocks are paired where both runs sent the same requests. Exit status: 0 nothing is worse,
    1 something is, 2 wrong input, 3 a run is invalid or the samples do not decide.

    Example: quantile compare reports/before reports/after
    """
    from loadtests.report.compare import compare_folders, print_comparison

    found = compare_folders(before, after)
    print_comparison(found, _console())
    raise typer.Exit(found.exit_code)


def load_worker(
    master: Annotated[str, typer.Option(help="HOST:PORT of `quantile loadtest --listen`.")],
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable of this machine that holds the API key, where the "
            "campaign has target.api_key_env; no other one is ever sent.",
        ),
    ] = None,
) -> None:
    """Send a share of a campaign's load from this machine, until the campaign ends.

    In a trusted network only: whoever answers as the master says where the load goes.
    Example: quantile load-worker --master 10.0.0.5:5557 --api-key-env API_KEY
    """
    command = [sys.executable, "-m", "loadtests.drive.worker", "--master", master]
    if api_key_env is not None:
        command += ["--api-key-env", api_key_env]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _with_target(
    campaign: Campaign, url: str | None, model: str | None, variants: list[str] | None
) -> Campaign:
    changes = {"base_url": url, "model": model, "variants": variants or None}
    given = {key: value for key, value in changes.items() if value is not None}
    return campaign.with_target(**given) if given else campaign


def _finish(result: CampaignResult, console: Console) -> None:
    from loadtests.report.terminal import print_result

    print_result(result, console)
    raise typer.Exit(EXIT_STATUS[result.verdict])


def _console() -> Console:
    """stdout; wide where it is a file or a pipe, which have no width of their own."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)
