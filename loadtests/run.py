"""Run one campaign: from the question which variants there are to the report.

Locust monkey-patches the process that imports it, so the load runs in processes of its own; this
module imports none of it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from loadtests.analyse.search import stage_of
from loadtests.campaign import Campaign
from loadtests.drive.shard import check_cap
from loadtests.observe.discover import resolve_variants
from loadtests.observe.pages import own_metrics
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
from loadtests.stop import STOP_GRACE_S, Stop
from serve_app.domain.errors import ConfigError

LOG_LINES = 5
WRONG_INPUT = f"{ConfigError.__name__}: "
"""How the load process begins an ending that is the caller's to mend."""


@dataclass(frozen=True)
class LoadOptions:
    """Where the load comes from."""

    processes: int = 1
    """Load processes on this machine; one per core that the server does not need."""
    remote_workers: int = 0
    """Load processes on other machines: `quantile load-worker --master HOST:PORT`."""
    listen: str | None = None
    """HOST:PORT that remote workers connect to, in a network of trust: Locust's port asks for no
    password. None without remote workers."""
    web_port: int | None = None
    """Port of Locust's own web UI."""

    def check(self, campaign: Campaign) -> None:
        """Raise ConfigError for what the load process would refuse, or would wait for in vain."""
        if (self.listen is None) != (self.remote_workers == 0):
            given = f"--listen {self.listen}" if self.listen else "--remote-workers alone"
            raise ConfigError(
                "need both --listen HOST:PORT, where workers of other machines come, and "
                f"--remote-workers N, how many to wait for; have {given}: give both or neither"
            )
        port = re.fullmatch(r".+:([0-9]{1,5})", self.listen or ":")
        if self.listen is not None and not (port and 0 < int(port[1]) < 1 << 16):
            raise ConfigError(f"--listen: need HOST:PORT, have {self.listen!r}")
        check_cap(campaign.in_flight_cap, self.processes + self.remote_workers)

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

    `columns` adds columns to the tables. Ctrl-C, SIGTERM or SIGHUP ends the load (a second one at
    once); what was measured until then is reported and marked partial, as it is when a worker or
    the server is lost. Raises ConfigError if `out_dir` already holds a run or cannot be made, an
    input cannot be read or planned, a request could not fit a variant's context, the endpoint
    cannot be asked for its models, or the load process has no port to listen on;
    UnknownModelError if a variant is not served; InvalidRunError if not all replicas become ready.
    """
    console = console or Console(stderr=True)
    options = options or LoadOptions()
    options.check(campaign)
    files = RunFiles(out_dir)
    if present := files.present():
        raise ConfigError(
            f"{out_dir} already holds a run ({', '.join(present)}): name another folder"
        )
    resolved, metrics_notes = own_metrics(resolve_variants(campaign))
    check_lengths(resolved, context_lengths(resolved))
    n_cells, notes = _plan(resolved)
    _make_folder(out_dir)
    with console.status("waiting until all replicas of all variants are ready") as status:
        variants = wait_until_ready(resolved, status.update)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        started_at=utc_now(),
        host=this_host(),
        campaign=resolved.model_dump(mode="json"),
        n_workers=options.processes + options.remote_workers,
        n_cells=n_cells,
        notes=notes + metrics_notes,
        inputs={str(path): digest(path) for path in input_files(resolved)},
        tokens_per_word=tokens_per_word(resolved),
        variants=variants,
        columns={title: dict(cells) for title, cells in (columns or {}).items()},
    )
    with Stop() as stop:
        files.write_manifest(manifest)
        _load(files, resolved, options, console, stop)
        return write_report(out_dir)


def _plan(campaign: Campaign) -> tuple[int | None, tuple[str, ...]]:
    """How many cells there will be, None for a search, and notes. Raises ConfigError."""
    prompts = load_prompts(campaign.workload.prompts)
    planner, search = Planner(campaign, len(prompts)), campaign.search
    if search is None:
        return plan_cells(planner).n_cells, planner.notes()
    planner.requests(stage_of(search, search.low_per_s), 0)  # no other rate has fewer requests
    return None, planner.notes()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: need a folder that can be made: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: need a folder that can be written to, have {folder}")


def _load(
    files: RunFiles, campaign: Campaign, options: LoadOptions, console: Console, stop: Stop
) -> None:
    """Send the load; `ending.json` says how it ended. Raises ConfigError if it could not begin."""
    epoch_ns = time.monotonic_ns()
    command = ["--epoch-ns", str(epoch_ns), *options.arguments()]
    scraper = Scraper(campaign, files, epoch_ns)
    with scraper, _load_process(files, command) as process:
        stop.ends(process)
        lines = process.stdout or ()
        try:
            _show(lines, console, stop)
        except OSError:  # nobody looks any more: the terminal was closed
            console.quiet = True
            for _ in lines:  # the load process must not find its pipe full
                pass
        process.wait()
    if (trouble := scraper.trouble()) is not None:
        console.print(trouble, style="yellow", markup=False, highlight=False, soft_wrap=True)
    ending = files.read_ending()
    if ending is None:
        tail = files.client_log.read_text(encoding="utf-8", errors="replace").strip()
        last = "\n".join(tail.splitlines()[-LOG_LINES:])
        detail = f"the load process ended with status {process.returncode}: {last}"
        reason = EndReason.FAILED
        if stop.heard:
            reason, detail = EndReason.INTERRUPTED, f"{stop.heard[0].name}: {detail}"
        files.write_ending(Ending(reason=reason, detail=detail))
    elif ending.detail.startswith(WRONG_INPUT) and not files.cells.exists():
        raise ConfigError(f"{ending.detail.removeprefix(WRONG_INPUT)} (nothing was sent)")


def _show(lines: Iterable[bytes], console: Console, stop: Stop) -> None:
    decoder = msgspec.json.Decoder(Progress)
    is_told = False
    with LiveView(console) as view:
        for line in lines:
            view.show(decoder.decode(line))
            if stop.heard and not is_told:
                console.print("stopping the load; what was measured is kept")
                is_told = True


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
