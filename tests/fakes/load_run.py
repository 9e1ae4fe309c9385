"""A campaign of the tests, run by the load process itself, without what stands around it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtests.campaign import parse_campaign
from loadtests.records.manifest import SCHEMA_VERSION, Ending, Manifest, RunFiles
from loadtests.records.progress import Progress
from loadtests.records.record import CellPlan, CellRun, RequestRecord, read_lines

WAIT_S = 30.0


def raw_campaign(base_url: str, **changes: object) -> dict:
    """20 requests a second for 1 s, of 5 tokens each; `stage` changes the stage."""
    stage = {"name": "s", "kind": "constant", "rate_per_s": 20, "duration_s": 1.0}
    return {
        "target": {"base_url": base_url, "model": "m", "variants": ["a"]},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [5, 5]},
        "stages": [stage | changes.pop("stage", {})],
        **changes,
    }


@dataclass
class LoadRun:
    """A folder with a manifest, and what the load process left in it."""

    files: RunFiles
    epoch_ns: int = 0

    @classmethod
    def new(cls, folder: Path, raw: dict) -> "LoadRun":
        folder.mkdir(parents=True, exist_ok=True)
        files = RunFiles(folder)
        campaign = parse_campaign(raw, "test").model_dump(mode="json")
        files.write_manifest(
            Manifest(schema_version=SCHEMA_VERSION, started_at="", host={}, campaign=campaign)
        )
        return cls(files)

    @classmethod
    def at(cls, folder: Path) -> "LoadRun":
        """A run that something else has started, or will start."""
        return cls(RunFiles(folder))

    def command(self, *words: str) -> list[str]:
        self.epoch_ns = time.monotonic_ns()
        main = [sys.executable, "-m", "loadtests.drive.main", str(self.files.folder)]
        return [*main, "--epoch-ns", str(self.epoch_ns), *words]

    @contextmanager
    def started(self, *words: str, **options: object) -> Iterator["subprocess.Popen[bytes]"]:
        """The load process in a session of its own; nothing of it is left afterwards."""
        with self.files.client_log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*words),
                stdout=options.pop("stdout", subprocess.DEVNULL),
                stderr=log,
                start_new_session=True,
                **options,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def play(self, *words: str) -> "LoadRun":
        """Run it to its end."""
        with self.started(*words) as process:
            process.wait(WAIT_S * 2)
        return self

    def wait_for(self, is_so, what: str) -> None:
        """Wait until `is_so()`."""
        deadline_s = time.monotonic() + WAIT_S
        while not is_so():
            log = self.files.client_log
            assert time.monotonic() < deadline_s, (what, log.read_text() if log.exists() else "")
            time.sleep(0.02)

    def wait_for_records(self, n: int = 1) -> None:
        self.wait_for(lambda: len(self.records) >= n, f"{n} records")

    @property
    def records(self) -> list[RequestRecord]:
        return list(read_lines(self.files.records, RequestRecord))

    @property
    def cells(self) -> list[CellPlan]:
        return list(read_lines(self.files.cells, CellPlan))

    @property
    def runs(self) -> list[CellRun]:
        return list(read_lines(self.files.runs, CellRun))

    @property
    def ending(self) -> Ending | None:
        return self.files.read_ending()

    def errors(self) -> dict[str, int]:
        """How many requests failed in which way."""
        counts: dict[str, int] = {}
        for record in self.records:
            if record.error is not None:
                counts[record.error.value] = counts.get(record.error.value, 0) + 1
        return counts


def progress_lines(output: bytes) -> list[Progress]:
    return [msgspec.json.decode(line, type=Progress) for line in output.splitlines()]


def load_processes(master: int) -> list[int]:
    """Worker processes that `master` has started."""
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _stat(folder)[:1] == [str(master)]
    ]


def is_running(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _stat(folder: Path) -> list[str]:
    """Parent's process id, first."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[1:2]
    except OSError:
        return []


def hear_signals() -> None:
    """For a child before exec: a shell that runs the tests in the background has them ignore
    Ctrl-C, and nohup has them ignore a terminal that closes.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


SIGNALS_HEARD = {"preexec_fn": hear_signals}
