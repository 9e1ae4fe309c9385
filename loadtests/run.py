"""Run one campaign: from the question which variants there are to the report.

Locust monkey-patches the process that imports it, so the load runs in processes of its own; this
module imports none of it.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from loadtests.campaign import Campaign
from loadtests.observe.discover import resolve_variants
from loadtests.observe.ready import context_lengths, tokens_per_word, wait_until_ready
from loadtests.observe.scrape import Scraper
from loadtests.plan.cells import Planner, input_files
from loadtests.plan.context import check_lengths
from loadtests.plan.prompts import load_prompts
from loadtests.records.manifest import (
    SCHEMA_VERSION,
    Columns,
    Ending,
    EndReason,
    Manifest,
    RunFiles,
    digest,
    this_host,
    utc_now,
)
from loadtests.records.progress import Progress
from loadtests.report.live import LiveView
from loadtests.report.result import CampaignResult
from loadtests.report.write import write_report
from loadtests.source import plan_cells
from serve_app.domain.errors import ConfigError

STOP_GRACE_S = 20.0
"""Time for the load processes to record what is in flight and to leave."""
LOG_LINES = 5


@dataclass(frozen=True)
class LoadOptions:
    """Where the load comes from."""

    processes: int = 1
    """Load processes on this machine; one per core that the server does not need."""
    remote_workers: int = 0
    """Load processes on other machines: `quantile load-worker --master HOST:PORT`."""
    listen: str | None = None
    """HOST:PORT that workers connect to; null: a free port of this machine alone."""
    web_port: int | None = None
    """Port of Locust's own web UI."""

    def arguments(self) -> list[str]:
        """For the load process."""
        given = {
            "--processes": self.processes,
            "--remote-workers": self.remote_workers or None,
            "--listen": self.listen,
            "--web-port": self.web_port,
        }
        return [
            str(word)
            for name, value in given.items()
            if value is not None
            for word in (name, value)
        ]


def run_campaign(
    campaign: Campaign,
    out_dir: Path,
    *,
    options: LoadOptions | None = None,
    console: Console | None = None,
    columns: Columns | None = None,
) -> CampaignResult:
    """Run `campaign`, leave records and report in `out_dir`, and return the result.

    `columns` adds columns to the tables. Ctrl-C ends the load; what was measured until then is
    reported and marked partial, as it is when a worker or the server is lost. Raises ConfigError
    if `out_dir` already holds a run, an input cannot be read, a request could not fit a variant's
    context, or the endpoint cannot be asked for its models; UnknownModelError if a variant is not
    served; InvalidRunError if not all replicas become ready.
    """
    console = console or Console(stderr=True)
    options = options or LoadOptions()
    files = RunFiles(out_dir)
    if files.manifest.exists():
        raise ConfigError(f"{out_dir} already holds a run: name another folder")
    resolved = resolve_variants(campaign)
    check_lengths(resolved, context_lengths(resolved))
    prompts = load_prompts(resolved.workload.prompts)
    planner = Planner(resolved, len(prompts))
    n_cells = None if resolved.search else plan_cells(resolved, prompts).n_cells
    with console.status("waiting until all replicas of all variants are ready") as status:
        variants = wait_until_ready(resolved, status.update)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        started_at=utc_now(),
        host=this_host(),
        campaign=resolved.model_dump(mode="json"),
        n_workers=options.processes + options.remote_workers,
        n_cells=n_cells,
        notes=planner.notes(),
        inputs={str(path): digest(path) for path in input_files(resolved)},
        tokens_per_word=tokens_per_word(resolved),
        variants=variants,
        columns={title: dict(cells) for title, cells in (columns or {}).items()},
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    files.write_manifest(manifest)
    _load(files, resolved, options, console)
    return write_report(out_dir)


def _load(files: RunFiles, campaign: Campaign, options: LoadOptions, console: Console) -> None:
    """Send the load; whatever happens, `ending.json` says how it ended."""
    epoch_ns = time.monotonic_ns()
    command = ["--epoch-ns", str(epoch_ns), *options.arguments()]
    with Scraper(campaign, files, epoch_ns), _load_process(files, command) as process:
        try:
            with LiveView(console) as view:
                decoder = msgspec.json.Decoder(Progress)
                for line in process.stdout or ():
                    view.show(decoder.decode(line))
            process.wait()
        except KeyboardInterrupt:
            console.print("stopping the load; what was measured is kept")
    if files.read_ending() is None:
        tail = files.client_log.read_text(encoding="utf-8", errors="replace").strip()
        last = "\n".join(tail.splitlines()[-LOG_LINES:])
        detail = f"the load process ended with status {process.returncode}: {last}"
        files.write_ending(Ending(reason=EndReason.FAILED, detail=detail))


@contextmanager
def _load_process(files: RunFiles, words: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """The load process in its own session, so that Ctrl-C reaches us alone; ended on exit."""
    command = [sys.executable, "-m", "loadtests.drive.main", str(files.folder), *words]
    with files.client_log.open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True
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
