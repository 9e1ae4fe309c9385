"""The files of one run, and what is written down before the first request is sent.

run.json       this manifest: the exact campaign, when and on what it ran
records.jsonl  one RequestRecord per planned request     cells.jsonl  one CellRun per cell
client.log     what the load process wrote to stderr
results.json   derived numbers     report.md, *.png      the same for people
"""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from loadtests.campaign import Campaign, parse_campaign
from serve_app.domain.errors import ConfigError

SCHEMA_VERSION = 1
Columns = Mapping[str, Mapping[str, str]]
"""Columns from outside, such as bytes or exact match: title -> variant -> text."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`. `campaign` has its variants by name, never `all`."""

    schema_version: int
    started_at: str
    """UTC, ISO 8601: for people; no interval is computed from it."""
    host: dict[str, str]
    campaign: dict[str, Any]
    columns: dict[str, dict[str, str]] = {}

    def parsed(self) -> Campaign:
        """The campaign, checked again. Raises ConfigError."""
        return parse_campaign(self.campaign, "run.json")


class RunFiles:
    """Paths of one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "run.json"
        self.records = folder / "records.jsonl"
        self.cells = folder / "cells.jsonl"
        self.client_log = folder / "client.log"
        self.results = folder / "results.json"
        self.report = folder / "report.md"

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
        self.manifest.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))


def new_manifest(campaign: Campaign, columns: Columns) -> Manifest:
    """The manifest of a run that starts now on this machine."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host={
            "machine": platform.machine(),
            "cpus": str(os.cpu_count()),
            "python": platform.python_version(),
            "locust": version("locust"),
        },
        campaign=campaign.model_dump(mode="json"),
        columns={title: dict(cells) for title, cells in columns.items()},
    )
