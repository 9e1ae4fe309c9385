"""`report.json`: everything that the views show, as data with a version.

Infinite numbers are JSON null, as is what is missing; the `reason` beside them says which it is.
"""

from pathlib import Path
from typing import Any

import msgspec

from loadtests.analyse.metrics import FORMULAS
from loadtests.analyse.nouns import Comparison, Saturation, VariantSummary, Verdict
from loadtests.records.manifest import SCHEMA_VERSION, Ending, Manifest
from loadtests.report.findings import headlines, status_line, trust_reasons
from loadtests.report.result import CampaignResult
from serve_app.domain.errors import ConfigError


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`. Times in ms, rates per second of measured window."""

    schema_version: int
    verdict: Verdict
    status: str
    """Whether the run can be trusted, in one line."""
    headlines: tuple[str, ...]
    """Which variant is better, and where: one sentence per variant."""
    is_valid: bool
    is_partial: bool
    problems: tuple[str, ...]
    """Every reason not to trust a number."""
    n_cells: int | None
    """Planned; None in a search."""
    n_cells_done: int
    ending: Ending | None
    """None: the run was killed before it could say."""
    manifest: Manifest
    """Campaign, host, versions, digests of the inputs, what the target said of its variants."""
    formulas: dict[str, str]
    summaries: tuple[VariantSummary, ...]
    comparisons: tuple[Comparison, ...]
    saturation: tuple[Saturation, ...]


def report_of(result: CampaignResult) -> Report:
    """The document of a result."""
    return Report(
        schema_version=SCHEMA_VERSION,
        verdict=result.verdict,
        status=status_line(result),
        headlines=tuple(each.text for each in headlines(result)),
        is_valid=result.is_valid,
        is_partial=result.is_partial,
        problems=trust_reasons(result),
        n_cells=result.n_cells,
        n_cells_done=result.n_cells_done,
        ending=result.ending,
        manifest=result.manifest,
        formulas=dict(FORMULAS),
        summaries=result.summaries,
        comparisons=result.comparisons,
        saturation=result.saturation,
    )


def encode(report: Report) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def read_report(path: Path) -> Report:
    """Read a `report.json`. Raises ConfigError if it is none of this schema version."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: not a load report: {error}") from error
    if found.schema_version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: need schema version {SCHEMA_VERSION}, have {found.schema_version}: "
            "make it again with `quantile report` on its folder"
        )
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`."""
    return msgspec.json.schema(Report)
