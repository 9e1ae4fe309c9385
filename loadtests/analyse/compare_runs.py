"""Two runs against each other: before and after a change, metric by metric.

Stages and variants of one name are compared. Where both runs sent the same requests, blocks are
paired; else their means are compared by Welch's t. All p-values of the two runs are adjusted
together (Holm).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loadtests.analyse.nouns import Change, RunChange, Saturation
from loadtests.analyse.ratios import METRICS, Found, Metric, blocks_of, find, judge
from loadtests.analyse.share_changes import compare_shares, judged
from loadtests.analyse.significance import holm
from loadtests.analyse.summary import rows_of
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign
from loadtests.records.manifest import Manifest

_Row = tuple[str, str]


@dataclass(frozen=True)
class RunData:
    """What is needed of one run: its whole cells and what is known of the run as a whole."""

    manifest: Manifest
    campaign: Campaign
    cells: tuple[WholeCell, ...]
    saturation: tuple[Saturation, ...]
    is_valid: bool
    is_partial: bool


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs compared."""

    changes: tuple[RunChange, ...]
    paired_stages: tuple[str, ...]
    """Stages at which both runs sent the same requests."""
    notes: tuple[str, ...]
    """Why a run or the comparison is worth less than it may look."""
    is_sound: bool
    """Whether both runs are whole and valid."""
    is_valid: bool

    @property
    def exit_code(self) -> int:
        """1: something is worse. 3: a run is invalid (whatever the numbers say), or nothing is
        worse but a run is partial, nothing could be compared, or some metric may still be worse
        by more than the margin. 0: none of these.
        """
        if not self.is_valid:
            return 3
        if any(each.change is Change.WORSE for each in self.changes):
            return 1
        is_clear = self.changes and all(each.rules_out_worse for each in self.changes)
        return 0 if is_clear and self.is_sound else 3


def compare_runs(a: RunData, b: RunData) -> RunComparison:
    """Run `b` against run `a`. The margin for sameness is that of `b`'s campaign."""
    rows_a, rows_b = rows_of(a.campaign, a.cells), rows_of(b.campaign, b.cells)
    common = [] if a.campaign.search or b.campaign.search else [r for r in rows_a if r in rows_b]
    stages = dict.fromkeys(stage for stage, _ in common)
    paired = [s for s in stages if requests_digest(a.manifest, s) == requests_digest(b.manifest, s)]
    same_within = b.campaign.same_within
    found = [
        _compare(metric, row, rows_a[row], rows_b[row], row[0] in paired)
        for row in common
        for metric in METRICS
    ]
    shares = [
        each
        for row in common
        for each in compare_shares(row, (a.campaign, b.campaign), (rows_a[row], rows_b[row]))
    ]
    p_values = [each.ratio.p_value if each.ratio else None for _, _, each in found]
    p_adjusted = holm(p_values + [each.p_value for each in shares])
    changes = [
        _change(row, metric, each, p, same_within)
        for (row, metric, each), p in zip(found, p_adjusted, strict=False)
    ]
    changes += [judged(each, p) for each, p in zip(shares, p_adjusted[len(found) :], strict=True)]
    changes.sort(key=lambda each: common.index((each.stage, each.variant)))
    return RunComparison(
        changes=(*changes, *_compare_saturation(a, b)),
        paired_stages=tuple(paired),
        notes=tuple(_notes(a, b, common, [s for s in stages if s not in paired])),
        is_sound=all(run.is_valid and not run.is_partial for run in (a, b)),
        is_valid=a.is_valid and b.is_valid,
    )


def requests_digest(manifest: Manifest, stage: str) -> str:
    """Digest of all that decides the requests of a stage: seed, workload, arrivals, input files.

    Files count by their content, not by their path. How many blocks there are does not count.
    """
    raw = manifest.campaign
    spec = [each for each in raw.get("stages", ()) if each["name"] == stage]
    made_of = {
        "seed": raw.get("seed"),
        "workload": _without_paths(raw["workload"]),
        "stage": [{k: v for k, v in _without_paths(s).items() if k != "gate"} for s in spec],
        "warmup_s": raw.get("warmup_s"),
        "cooldown_s": raw.get("cooldown_s"),
        "inputs": sorted(manifest.inputs.values()),
        "tokens_per_word": manifest.tokens_per_word,
    }
    return hashlib.sha256(msgspec.json.encode(made_of, order="sorted")).hexdigest()


def _without_paths(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_paths(value) for key, value in raw.items() if key != "path"}
    return raw


def _compare(
    metric: Metric, row: _Row, a: Sequence[WholeCell], b: Sequence[WholeCell], paired: bool
) -> tuple[_Row, Metric, Found]:
    return row, metric, find(metric, blocks_of(metric, a), blocks_of(metric, b), paired=paired)


def _change(
    row: _Row, metric: Metric, found: Found, p_adjusted: float | None, same_within: float
) -> RunChange:
    change, reason = judge(metric, found, p_adjusted, same_within)
    ratio = found.ratio
    low, high = (None, None) if ratio is None else (ratio.low, ratio.high)
    is_far = (
        low is not None and low >= 1 / (1 + same_within)
        if metric.more_is_better
        else high is not None and high <= 1 + same_within
    )
    return RunChange(
        stage=row[0],
        variant=row[1],
        metric=metric.name,
        p=metric.p,
        n_blocks=found.n_blocks,
        values=found.values,
        kind="ratio",
        effect=None if ratio is None else ratio.value,
        low=low,
        high=high,
        p_value=None if ratio is None else ratio.p_value,
        p_adjusted=p_adjusted,
        change=change,
        reason=reason,
        rules_out_worse=is_far or change in (Change.BETTER, Change.SAME),
    )


def _compare_saturation(a: RunData, b: RunData) -> list[RunChange]:
    """The highest rates that two searches found, by their brackets; no p-value comes of these.

    A bracket is as wide as the search's precision, so the margin is never less than that.
    """
    searches = [run.campaign.search for run in (a, b) if run.campaign.search is not None]
    same_within = max([b.campaign.same_within, *(search.precision for search in searches)])
    of_a = {each.variant: each for each in a.saturation}
    found = []
    for now in b.saturation:
        was = of_a.get(now.variant)
        if was is None:
            continue
        low, high = (
            _over(now.highest_passed_per_s, was.lowest_failed_per_s),
            _over(now.lowest_failed_per_s, was.highest_passed_per_s),
        )
        effect = _over(now.highest_passed_per_s, was.highest_passed_per_s)
        change, reason = Change.INCONCLUSIVE, "a search found no bracket"
        if low is not None and high is not None:
            reason = f"ratio of the brackets between {low:.3f} and {high:.3f}"
            if 1 / (1 + same_within) <= low and high <= 1 + same_within:
                change = Change.SAME
            elif low > 1 or high < 1:
                change = Change.BETTER if low > 1 else Change.WORSE
        found.append(
            RunChange(
                stage="search",
                variant=now.variant,
                metric="highest_rate_per_s",
                p=None,
                n_blocks=(len(was.probes), len(now.probes)),
                values=(was.highest_passed_per_s, now.highest_passed_per_s),
                kind="ratio",
                effect=effect,
                low=low,
                high=high,
                p_value=None,
                p_adjusted=None,
                change=change,
                reason=reason,
                rules_out_worse=low is not None and low >= 1 / (1 + same_within),
            )
        )
    return found


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _notes(a: RunData, b: RunData, common: Sequence[_Row], unpaired: Sequence[str]) -> list[str]:
    notes = []
    for name, run in (("A", a), ("B", b)):
        if not run.is_valid:
            notes.append(f"run {name} is invalid")
        if run.is_partial:
            notes.append(f"run {name} is partial: only its whole cells count")
    if not common and not (a.saturation and b.saturation):
        notes.append("the runs have no stage with a variant in common")
    if unpaired:
        names = ", ".join(unpaired)
        notes.append(f"other requests in A than in B at {names}: blocks are not paired")
    if a.campaign.slo != b.campaign.slo:
        notes.append("the runs have different SLOs: attainment is not compared")
    return notes
