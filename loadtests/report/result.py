"""What a campaign found, derived from the raw files of its run and from nothing else."""

from dataclasses import dataclass
from pathlib import Path

from loadtests.analyse.nouns import Comparison, Saturation, VariantSummary, Verdict
from loadtests.campaign import Campaign
from loadtests.records.manifest import Ending, Manifest


@dataclass(frozen=True)
class CampaignResult:
    """What a campaign found. Partial: it was stopped, and only whole cells count."""

    folder: Path
    manifest: Manifest
    campaign: Campaign
    ending: Ending | None
    summaries: tuple[VariantSummary, ...]
    """Stages in the order of the file (rates ascending in a search), then variants."""
    comparisons: tuple[Comparison, ...]
    saturation: tuple[Saturation, ...]
    n_cells: int | None
    n_cells_done: int
    """Cells of which every worker's records are there."""
    problems: tuple[str, ...]
    """Why the run as a whole is invalid: a lost worker, a short shard, an error of ours."""

    @property
    def is_partial(self) -> bool:
        """Whether the run did not come to its end."""
        return self.ending is None or self.ending.reason != "complete"

    @property
    def is_valid(self) -> bool:
        """Whether the plan ran whole and the client made none of the numbers."""
        rows_are_valid = all(each.is_valid for each in self.summaries)
        return not self.is_partial and not self.problems and rows_are_valid

    @property
    def verdict(self) -> Verdict:
        """Of the whole campaign; only stages with `gate` count towards pass or fail.

        A failed SLO is a finding even of a partial run, where its rows are valid.
        """
        raise NotImplementedError
