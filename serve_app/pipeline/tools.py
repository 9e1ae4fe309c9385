"""What stages do to the world: make, serve, ask, load, judge, recommend. One seam, so that the
runner can be tried without an engine.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from loadtests.campaign import Campaign
from serve_app.domain.quality import QualityReport
from serve_app.evaluate.settings import Settings
from serve_app.pipeline.findings import Load, MadeVariant, Recommended, Split
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.schema import Recommend, StagedSplit


class Tools(Protocol):
    """Each may raise a QuantileError, which ends the stage; evidence goes into `out`."""

    def make(
        self, file: PipelineFile, recipes: Sequence[str], models: Path
    ) -> tuple[MadeVariant, ...]:
        """Make and gate variants. One that loads and is wrong is returned, `passed` False."""

    def staged(
        self, config: Path, log: Path, ready_timeout_s: float
    ) -> AbstractContextManager[str]:
        """Serve a config file; inside, every variant with a share is ready at the base URL."""

    def split(
        self, base_url: str, model: str, asked: StagedSplit, shares_bp: Mapping[str, int]
    ) -> Split:
        """Send traffic through the alias."""

    def evaluate(
        self, settings: Settings, model: str, variants: Sequence[str], out: Path
    ) -> QualityReport:
        """`quantile eval`, the baseline first in `variants`; leaves `quality.json`."""

    def load(self, campaign: Campaign, out: Path, columns: Mapping[str, Mapping[str, str]]) -> Load:
        """Run a campaign. Raises KeyboardInterrupt where it was asked to stop."""

    def recommend(
        self, asked: Recommend, run: Path, quality: Path, config: Path, out: Path
    ) -> Recommended:
        """Recommend on the evidence."""
