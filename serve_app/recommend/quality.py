"""From an evaluation's report to evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.advise.contrasts import Contrast
from serve_app.advise.evidence import Quality


@dataclass(frozen=True)
class Judged:
    """What an evaluation says of each variant, and of each pair."""

    model: str | None
    baseline: str | None
    quality: Mapping[str, Quality] = field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_judged(path: Path, margin: float) -> Judged:
    """Raises ConfigError for a file that is no quality report."""
    raise NotImplementedError
