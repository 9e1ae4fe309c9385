"""How views name stages, rows and colours: the same in every table and every figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.analyse.nouns import VariantSummary
from loadtests.report.result import CampaignResult


@dataclass(frozen=True)
class StageRows:
    """The summaries that belong in one table: those of a stage, or all probes of a search."""

    title: str
    rows: tuple[VariantSummary, ...]
    is_search: bool = False

    @property
    def name(self) -> str:
        """Short, for a panel of a figure: `heavy`, `16-users (closed loop)`."""
        row = self.rows[0]
        return row.stage if row.concurrency is None else f"{row.stage} (closed loop)"

    def label(self, row: VariantSummary) -> str:
        """How the table names `row`."""
        if not self.is_search:
            return row.variant
        return f"{row.variant} at {row.rate_per_s:.4g}/s"


def stage_rows(result: CampaignResult) -> tuple[StageRows, ...]:
    """One entry per stage in the order of the file; a search is one entry, variant by variant."""
    if result.campaign.search is not None:
        order = {name: i for i, name in enumerate(variants_of(result))}
        rows = sorted(result.summaries, key=lambda r: (order[r.variant], r.rate_per_s or 0.0))
        title = f"search: {result.campaign.search.kind} arrivals"
        return (StageRows(title, tuple(rows), is_search=True),) if rows else ()
    names = dict.fromkeys(row.stage for row in result.summaries)
    found = ((name, [r for r in result.summaries if r.stage == name]) for name in names)
    return tuple(StageRows(_title(result, name, rows), tuple(rows)) for name, rows in found)


def variants_of(result: CampaignResult) -> tuple[str, ...]:
    """The variants in the order of the campaign: a variant keeps its place and its colour."""
    return result.campaign.variant_names()


def _title(result: CampaignResult, name: str, rows: Sequence[VariantSummary]) -> str:
    stage = next(each for each in result.campaign.stages if each.name == name)
    if stage.kind == "concurrency":
        users = "1 user" if stage.concurrency == 1 else f"{stage.concurrency} users"
        return f"{name}: closed loop, {users} (latencies hide waiting, no tail to trust)"
    if stage.kind == "ramp":
        return f"{name}: ramp {stage.from_per_s:g} to {stage.to_per_s:g} requests/s"
    row = rows[0]
    rate = row.offered_per_s if row.rate_per_s is None else row.rate_per_s
    return f"{name}: {stage.kind} {rate:.3g} requests/s"
