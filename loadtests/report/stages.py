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
    kinds = {stage.name: stage.kind for stage in result.campaign.stages}
    return f"{name}: {kinds.get(name, '')} {load_of(rows[0])}".replace("  ", " ")


def load_of(row: VariantSummary) -> str:
    """`8 requests/s` or `16 users`."""
    if row.concurrency is not None:
        return f"{row.concurrency} users"
    return f"{row.offered_per_s if row.rate_per_s is None else row.rate_per_s:.3g} requests/s"
