"""One campaign through the real load process, without what `loadtests.run` does around it."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.bench.mock import pinned
from loadtests.campaign import parse_campaign
from loadtests.records.manifest import SCHEMA_VERSION, Manifest, RunFiles, this_host, utc_now
from loadtests.records.record import CellRun, RequestRecord, read_lines
from serve_app.domain.errors import InvalidRunError


@dataclass(frozen=True)
class Driven:
    """What the load process left."""

    records: list[RequestRecord]
    runs: list[CellRun]


def drive(
    folder: Path, campaign: dict[str, Any], *, processes: int = 1, cpu: int | None = None
) -> Driven:
    """Run `campaign` (as its YAML file would say it) in `folder`, on core `cpu` alone if given.

    Raises ConfigError if it is none, InvalidRunError if the load process does not end well.
    """
    files = RunFiles(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checked = parse_campaign(campaign, str(folder)).model_dump(mode="json")
    files.write_manifest(
        Manifest(
            schema_version=SCHEMA_VERSION,
            started_at=utc_now(),
            host=this_host(),
            campaign=checked,
            n_workers=processes,
        )
    )
    command = [*pinned(cpu), sys.executable, "-m", "loadtests.drive.main", str(folder)]
    command += ["--epoch-ns", str(time.monotonic_ns()), "--processes", str(processes)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        ending = files.read_ending()
        raise InvalidRunError(
            f"the load process ended with status {done.returncode}: "
            f"{ending.detail if ending else 'see its errors above'}"
        )
    records = list(read_lines(files.records, RequestRecord))
    return Driven(records, list(read_lines(files.runs, CellRun)))
