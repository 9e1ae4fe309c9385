"""The files of one run, and what is written down before the first request is sent.

run.json       this manifest: the exact campaign, when, on what and against what it ran
cells.jsonl    one CellPlan per cell, as it was decided
records.jsonl  one RequestRecord per planned request
runs.jsonl     one CellRun per cell and load process
samples.jsonl  one MetricSample per scraped series and scrape
ending.json    how the run ended; missing: it was killed
client.log     what the load processes wrote to stderr
report.json    derived numbers     report.html, report.md, summary.csv, *.png   the same for people
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from loadtests.campaign import Campaign, parse_campaign
from serve_app.domain.errors import ConfigError

SCHEMA_VERSION = 2
Columns = Mapping[str, Mapping[str, str]]
"""Columns from outside, such as bytes or exact match: title -> variant -> text."""


class VariantFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the target says of one variant when the run starts. None: it does not say."""

    replicas: int | None = None
    """Ready replicas: all of them, or the run would not have started."""
    facts: dict[str, str] = {}
    """Engine, versions, kernel, flags, device: name -> text."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`. `campaign` has its variants by name, never `all`."""

    schema_version: int
    started_at: str
    """UTC, ISO 8601: for people; no interval is computed from it."""
    host: dict[str, str]
    campaign: dict[str, Any]
    n_workers: int = 1
    n_cells: int | None = None
    """Cells of the plan; None for a search, which decides as it goes."""
    inputs: dict[str, str] = {}
    """SHA-256 of the files that the plan was made from: path -> digest."""
    tokens_per_word: float | None = None
    """Of made text, by the target's `/tokenize`; None: the default was used."""
    notes: tuple[str, ...] = ()
    """What a reader should know: how much of a trace was left out or cut, which metrics were."""
    variants: dict[str, VariantFacts] = {}
    columns: dict[str, dict[str, str]] = {}

    def parsed(self) -> Campaign:
        """The campaign, checked again. Raises ConfigError."""
        return parse_campaign(self.campaign, "run.json")


class MetricSample(msgspec.Struct, frozen=True, kw_only=True):
    """One value of one series, as it was scraped."""

    t_ns: int
    """From the start of the run."""
    name: str
    labels: dict[str, str]
    value: float


class EndReason(StrEnum):
    """How a run ended."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"  # Ctrl-C, SIGTERM, SIGHUP
    WORKER_LOST = "worker_lost"
    SERVER_GONE = "server_gone"  # give_up_after requests in a row found no server
    FAILED = "failed"  # an error of ours: `detail` has it


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """`ending.json`: written last, once the records are on disk."""

    reason: EndReason
    detail: str = ""


class RunFiles:
    """Paths of one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "run.json"
        self.cells = folder / "cells.jsonl"
        self.records = folder / "records.jsonl"
        self.runs = folder / "runs.jsonl"
        self.samples = folder / "samples.jsonl"
        self.ending = folder / "ending.json"
        self.client_log = folder / "client.log"
        self.report_json = folder / "report.json"
        self.report_md = folder / "report.md"
        self.report_html = folder / "report.html"
        self.summary_csv = folder / "summary.csv"

    def present(self) -> tuple[str, ...]:
        """Names of those that are there."""
        paths = (path for path in vars(self).values() if path != self.folder)
        return tuple(path.name for path in paths if path.exists())

    def read_manifest(self) -> Manifest:
        """Raises ConfigError if the folder holds no run of this schema version."""
        try:
            manifest = msgspec.json.decode(self.manifest.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self.folder}: not the folder of a load run: {error}") from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"{self.manifest}: need schema version {SCHEMA_VERSION}, "
                f"have {manifest.schema_version}: report it with the version that made it"
            )
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Write `run.json`, indented."""
        _write_whole(self.manifest, msgspec.json.format(msgspec.json.encode(manifest)))

    def read_ending(self) -> Ending | None:
        """None where the run was killed before it could say."""
        try:
            return msgspec.json.decode(self.ending.read_bytes(), type=Ending)
        except (OSError, msgspec.DecodeError):
            return None

    def write_ending(self, ending: Ending) -> None:
        """Write `ending.json`."""
        _write_whole(self.ending, msgspec.json.encode(ending))


def _write_whole(path: Path, content: bytes) -> None:
    """Write all of it or nothing: whoever reads meanwhile finds no half of it."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_bytes(content)
    aside.replace(path)


def this_host() -> dict[str, str]:
    """Machine, CPUs and versions of the load generator."""
    return {
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        "locust": version("locust"),
        "quantile": version("quantile-serve"),
    }


def utc_now() -> str:
    """Now, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error}") from error
