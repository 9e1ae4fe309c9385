"""What a campaign found, derived from the raw files of its run and from nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from loadtests.analyse.blocks import compare_cells
from loadtests.analyse.nouns import Change, Comparison, Saturation, VariantSummary, Verdict
from loadtests.analyse.saturation import find_saturation
from loadtests.analyse.summary import summarize_cells
from loadtests.analyse.verdict import campaign_verdict
from loadtests.analyse.whole import WholeCell, shard_problems, whole_cells
from loadtests.campaign import Campaign
from loadtests.records.manifest import Ending, EndReason, Manifest, MetricSample, RunFiles
from loadtests.records.record import CellPlan, CellRun, RequestRecord, read_lines

T = TypeVar("T")


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
        return self.ending is None or self.ending.reason is not EndReason.COMPLETE

    @property
    def is_valid(self) -> bool:
        """Whether the plan ran whole and the client made none of the numbers."""
        return bool(self.summaries) and not self.is_partial and self.is_sound

    @property
    def verdict(self) -> Verdict:
        """Of the whole campaign; only `gated_stages` count towards pass or fail.

        A failed SLO is a finding even of a partial run, where its rows are valid.
        """
        return campaign_verdict(
            self.summaries, self.saturation, self.gated_stages, self.is_sound, self.is_partial
        )

    @property
    def gated_stages(self) -> frozenset[str]:
        """Stages that count towards the SLO: those with `gate`, which no closed loop has."""
        return frozenset(stage.name for stage in self.campaign.stages if stage.gate)

    @property
    def is_sound(self) -> bool:
        """Whether what there is can be trusted, be the run partial or not.

        Rows of a search are not asked: probes beyond saturation may fill the client, and a probe
        is judged by what the server did. Its brackets are.
        """
        if self.campaign.search is not None:
            is_known = all(each.verdict is not Verdict.INVALID for each in self.saturation)
        else:
            is_known = all(each.is_valid for each in self.summaries)
        return is_known and not self.problems


@dataclass(frozen=True)
class RawRun:
    """Everything that a run's folder holds, as it was written."""

    folder: Path
    manifest: Manifest
    campaign: Campaign
    ending: Ending | None
    cells: tuple[CellPlan, ...]
    records: tuple[RequestRecord, ...]
    runs: tuple[CellRun, ...]
    samples: tuple[MetricSample, ...]
    damage: tuple[str, ...]
    """Files with a line that cannot be read; what stands before that line is kept."""

    @cached_property
    def whole(self) -> tuple[WholeCell, ...]:
        """The cells that count."""
        return whole_cells(self.cells, self.records, self.runs, self.manifest.n_workers)


def read_run(folder: Path) -> RawRun:
    """Read a run's folder, whatever state the run left it in.

    Raises ConfigError if there is no manifest of this schema version.
    """
    files = RunFiles(folder)
    manifest = files.read_manifest()
    damage: list[str] = []
    return RawRun(
        folder=folder,
        manifest=manifest,
        campaign=manifest.parsed(),
        ending=files.read_ending(),
        cells=_read(files.cells, CellPlan, damage),
        records=_read(files.records, RequestRecord, damage),
        runs=_read(files.runs, CellRun, damage),
        samples=_read(files.samples, MetricSample, damage),
        damage=tuple(damage),
    )


def read_result(folder: Path) -> CampaignResult:
    """Derive the result from a run's folder. Raises ConfigError as `read_run` does."""
    return result_of(read_run(folder))


def result_of(run: RawRun) -> CampaignResult:
    """The result of what was read."""
    is_complete = run.ending is not None and run.ending.reason is EndReason.COMPLETE
    shards: tuple[str, ...] = ()
    if run.ending is not None:  # a killed run may end in any line: its whole cells still count
        shards = shard_problems(
            run.cells, run.records, run.runs, run.manifest.n_workers, is_complete=is_complete
        )
    problems = (*_ending_problems(run, is_complete=is_complete), *run.damage, *shards)
    summaries = summarize_cells(run.campaign, run.whole)
    return CampaignResult(
        folder=run.folder,
        manifest=run.manifest,
        campaign=run.campaign,
        ending=run.ending,
        summaries=summaries,
        comparisons=_doubted(compare_cells(run.campaign, run.whole), summaries, problems),
        saturation=find_saturation(run.campaign, run.whole),
        n_cells=run.manifest.n_cells,
        n_cells_done=len(run.whole),
        problems=problems,
    )


def _doubted(
    comparisons: Sequence[Comparison], summaries: Sequence[VariantSummary], problems: Sequence[str]
) -> tuple[Comparison, ...]:
    """All comparisons; inconclusive those with `doubts`, so that no view says who is better."""
    found = []
    for each in comparisons:
        why = doubts(each, summaries, problems)
        if why is not None:
            reason = f"not to be trusted, {why}: {each.reason}"
            each = msgspec.structs.replace(each, change=Change.INCONCLUSIVE, reason=reason)
        found.append(each)
    return tuple(found)


def doubts(
    each: Comparison, summaries: Sequence[VariantSummary], problems: Sequence[str]
) -> str | None:
    """`bf16 and fp8 are invalid`: which of the two rows are, or the whole run; None for neither."""
    if problems:
        return "the run is invalid"
    names = [
        row.variant
        for row in summaries
        if row.stage == each.stage
        and row.variant in (each.variant, each.baseline)
        and not row.is_valid
    ]
    if not names:
        return None
    return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} invalid"


def _ending_problems(run: RawRun, *, is_complete: bool) -> Iterator[str]:
    """What the end of the run says against all of its numbers. To be stopped is no such thing."""
    ending, n_cells = run.ending, run.manifest.n_cells
    if ending is not None and ending.reason in (EndReason.WORKER_LOST, EndReason.FAILED):
        yield f"{ending.reason}: {ending.detail}" if ending.detail else str(ending.reason)
    if is_complete and n_cells is not None and len(run.cells) != n_cells:
        yield f"{len(run.cells)} of {n_cells} planned cells, in a run that says it is complete"
    if is_complete and not run.cells:
        yield "no cell, in a run that says it is complete"


def _read(path: Path, kind: type[T], damage: list[str]) -> tuple[T, ...]:
    """The objects of a file up to the first line that is none; that line goes to `damage`."""
    found: list[T] = []
    try:
        found.extend(read_lines(path, kind))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        damage.append(f"{path.name}: line {len(found) + 1} cannot be read: {error}")
    return tuple(found)
