"""Run one campaign: start the load process, watch it, and turn its records into a result.

Locust monkey-patches the process that imports it, so it runs in a process of its own; this
module imports none of it.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from loadtests.campaign import Campaign
from loadtests.drive.client import HttpTarget, auth_headers
from loadtests.records.manifest import Columns, RunFiles, new_manifest
from loadtests.plan.prompts import load_prompts
from loadtests.records.record import Progress
from loadtests.report.result import CampaignResult, write_report
from loadtests.plan.cells import Cell, plan_cells
from serve_app.domain.errors import ConfigError, InvalidRunError, UnknownModelError

STOP_GRACE_S = 10.0
DISCOVERY_TIMEOUT_S = 10.0


class _ModelCard(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


def run_campaign(
    campaign: Campaign,
    out_dir: Path,
    *,
    console: Console | None = None,
    columns: Columns | None = None,
) -> CampaignResult:
    """Run `campaign`, leave records and report in `out_dir`, and return the result.

    `columns` adds columns to the tables. Ctrl-C ends the load; what was measured until then is
    reported and marked partial. Raises ConfigError if `out_dir` already holds a run or the
    endpoint cannot be asked for its models, UnknownModelError if a variant is not served,
    InvalidRunError if the load process fails.
    """
    console = console or Console(stderr=True)
    files = RunFiles(out_dir)
    if files.manifest.exists():
        raise ConfigError(f"{out_dir} already holds a run: name another folder")
    resolved = resolve_variants(campaign)
    cells = plan_cells(resolved, len(load_prompts(resolved.workload.prompts)))
    out_dir.mkdir(parents=True, exist_ok=True)
    files.write_manifest(new_manifest(resolved, columns or {}))
    status, is_interrupted = _watch(files, cells, console)
    if status != 0 and not is_interrupted:
        log = files.client_log.read_text(encoding="utf-8", errors="replace").strip()
        tail = "\n".join(log.splitlines()[-5:])
        raise InvalidRunError(
            f"the load process ended with status {status}; its records are in {out_dir}\n{tail}"
        )
    return write_report(out_dir)


def resolve_variants(campaign: Campaign) -> Campaign:
    """The campaign with its variants by name, each of them served by the endpoint now.

    Raises ConfigError if the endpoint does not answer, UnknownModelError if it serves no
    variant of the model, or not one that the campaign names.
    """
    served = served_variants(campaign)
    wanted = served if campaign.target.variants == "all" else campaign.variant_names()
    missing = [name for name in wanted if name not in served]
    if missing or not wanted:
        model, base_url = campaign.target.model, campaign.target.base_url
        raise UnknownModelError(
            f"{base_url} does not serve {model}@{{{','.join(missing) or '*'}}}; "
            f"its variants of {model!r}: {', '.join(served) or 'none'}"
        )
    return campaign.with_target(variants=list(wanted))


def served_variants(campaign: Campaign) -> tuple[str, ...]:
    """Variants that `GET /v1/models` lists as `<model>@<variant>`. Raises ConfigError."""
    target = campaign.target
    http = HttpTarget(target.base_url, auth_headers(target.api_key_env))
    exchange = http.exchange(http.request("GET", "/v1/models"), DISCOVERY_TIMEOUT_S)
    http.close()
    if exchange.status != 200:
        why = exchange.detail or f"HTTP {exchange.status}"
        raise ConfigError(
            f"{target.base_url}/v1/models: {why}. Is the server up? Set target.base_url"
        )
    try:
        listed = msgspec.json.decode(exchange.body, type=_ModelList)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{target.base_url}/v1/models: not a model list: {error}") from error
    prefix = f"{target.model}@"
    names = [card.id.removeprefix(prefix) for card in listed.data if card.id.startswith(prefix)]
    return tuple(dict.fromkeys(names))


def _watch(files: RunFiles, cells: tuple[Cell, ...], console: Console) -> tuple[int, bool]:
    """Exit status of the load process, and whether the user interrupted it."""
    with _load_process(files) as process:
        try:
            _show_progress(process, cells, console)
            return process.wait(), False
        except KeyboardInterrupt:
            console.print("stopping the load; what was measured is kept")
            return process.returncode or 0, True


@contextmanager
def _load_process(files: RunFiles) -> Iterator["subprocess.Popen[bytes]"]:
    """The load process in its own session, so that Ctrl-C reaches us alone; ended on exit."""
    with files.client_log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.drive.pacer", str(files.folder)],
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _show_progress(
    process: "subprocess.Popen[bytes]", cells: tuple[Cell, ...], console: Console
) -> None:
    decoder = msgspec.json.Decoder(Progress)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        total = sum(len(cell.requests) for cell in cells)
        task = bar.add_task("load", total=total, now="")
        for line in process.stdout or ():
            now = decoder.decode(line)
            cell = cells[now.cell]
            bar.update(
                task,
                completed=now.over,
                description=f"{cell.stage} block {cell.block + 1} {cell.variant}",
                now=f"{now.in_flight} in flight, {now.failed} failed",
            )
