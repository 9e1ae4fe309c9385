"""Two runs against each other: before and after a change, metric by metric.

Stages and variants of one name are compared, if both runs put the same load on them. Where both
sent the same requests, blocks are paired; else their means are compared by Welch's t. All
p-values of the two runs are adjusted together (Holm).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loadtests.analyse.nouns import Change, RunChange, Saturation, Verdict
from loadtests.analyse.ratios import (
    Found,
    Metric,
    blocks_of,
    find,
    judge,
    lacks_tail,
    metrics_of,
    rules_out_worse,
)
from loadtests.analyse.significance import Effect, holm
from loadtests.analyse.summary import rows_of
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign
from loadtests.records.manifest import Manifest

_Row = tuple[str, str]
SEARCH = "search"
"""Stands for a stage where two searches are compared."""
ONE_START = (
    "two runs of the same thing may differ by more than blocks of one run do: repeat runs, or put "
    "both into one campaign as two variants"
)
"""An engine that is started again is another sample, and two runs have one of each."""


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
    """Whether both runs are whole and valid, and neither has a row that the other lacks."""
    is_valid: bool

    @property
    def exit_code(self) -> int:
        """1: something is worse. 3: a run is invalid (whatever the numbers say), or nothing is
        worse but a run is partial, only one has a row, nothing could be compared, or some metric
        may still be worse by more than the margin. 0: none of these.
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
    slo = b.campaign.slo if a.campaign.slo == b.campaign.slo else None
    found: list[tuple[_Row, Metric, Found]] = []
    for stage in stages:
        rows = [row for row in common if row[0] == stage]
        metrics = metrics_of([c for row in rows for c in (*rows_a[row], *rows_b[row])], slo)
        other_load = load_differences(a.manifest, b.manifest, stage)
        for row in rows:
            for metric in metrics:
                was, now = (blocks_of(metric, cells[row], slo) for cells in (rows_a, rows_b))
                is_paired = stage in paired
                each = find(metric, was, now, b.campaign.same_within, is_paired=is_paired)
                if other_load:
                    reason = f"another load in A than in B: {', '.join(other_load)}"
                    each = each._replace(effect=None, pooled=None, reason=reason)
                found.append((row, metric, each))
    p_adjusted = holm([each.effect.p_value if each.effect else None for _, _, each in found])
    changes = [
        _change(row, metric, each, p, b.campaign.same_within)
        for (row, metric, each), p in zip(found, p_adjusted, strict=True)
    ]
    lone = _lone_rows(a, b)
    return RunComparison(
        changes=(*changes, *_compare_saturation(a, b)),
        paired_stages=tuple(paired),
        notes=(*_notes(a, b, common, paired), *lone, *_notes_of_servers(a.manifest, b.manifest)),
        is_sound=not lone and all(run.is_valid and not run.is_partial for run in (a, b)),
        is_valid=a.is_valid and b.is_valid,
    )


def requests_digest(manifest: Manifest, stage: str) -> str:
    """Digest of all that decides the requests of a stage: seed, workload, arrivals, input files.

    Files count by their content, not by their path. How many blocks there are does not count.
    """
    raw = manifest.campaign
    made_of = {
        **_load_of(manifest, stage),
        "timeout_s": None,
        "seed": raw.get("seed"),
        "warmup_s": raw.get("warmup_s"),
        "cooldown_s": raw.get("cooldown_s"),
        "tokens_per_word": manifest.tokens_per_word,
    }
    return hashlib.sha256(msgspec.json.encode(made_of, order="sorted")).hexdigest()


def load_differences(a: Manifest, b: Manifest, stage: str) -> list[str]:
    """In what the runs load a stage unlike each other, so that a change says nothing of a server.

    Other requests of the same kind (a seed, a longer warm-up) are no other load.
    """
    was, now = _load_of(a, stage), _load_of(b, stage)
    return [name for name in was if was[name] != now[name]]


def _load_of(manifest: Manifest, stage: str) -> dict[str, Any]:
    raw = manifest.campaign
    if stage == SEARCH:
        search = raw.get("search") or {}
        spec: Any = [{k: search.get(k) for k in ("kind", "burstiness", "duration_s")}, raw["slo"]]
    else:
        stages = [each for each in raw.get("stages", ()) if each["name"] == stage]
        spec = [{k: v for k, v in _without_paths(s).items() if k != "gate"} for s in stages]
    return {
        "stage": spec,
        "workload": _without_paths(raw["workload"]),
        "input files": sorted(manifest.inputs.values()),
        "timeout_s": raw.get("timeout_s"),
    }


def _without_paths(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_paths(value) for key, value in raw.items() if key != "path"}
    return raw


def _change(
    row: _Row, metric: Metric, found: Found, p_adjusted: float | None, same_within: float
) -> RunChange:
    change, reason = judge(metric, found, p_adjusted, same_within)
    effect = found.effect or Effect(None)
    return RunChange(
        stage=row[0],
        variant=row[1],
        metric=metric.name,
        p=metric.p,
        n_blocks=found.n_blocks,
        values=found.values,
        kind="difference" if metric.is_share else "ratio",
        effect=effect.value,
        low=effect.low,
        high=effect.high,
        p_value=effect.p_value,
        p_adjusted=p_adjusted,
        change=change,
        reason=reason,
        rules_out_worse=rules_out_worse(metric, found, change, same_within),
    )


def _compare_saturation(a: RunData, b: RunData) -> list[RunChange]:
    """The highest rates that two searches found, by what is confirmed; no p-value comes of these.

    A bracket is as wide as the search's precision, so the margin is never less than that.
    """
    searches = [run.campaign.search for run in (a, b) if run.campaign.search is not None]
    if len(searches) < 2:
        return []
    same_within = max([b.campaign.same_within, *(search.precision for search in searches)])
    other_load = load_differences(a.manifest, b.manifest, SEARCH)
    of_a = {each.variant: each for each in a.saturation}
    return [
        _saturation_change(of_a[now.variant], now, same_within, other_load)
        for now in b.saturation
        if now.variant in of_a
    ]


def _saturation_change(
    was: Saturation, now: Saturation, same_within: float, other_load: Sequence[str]
) -> RunChange:
    low = _over(now.confirmed_pass_per_s, was.confirmed_fail_per_s)
    high = _over(now.confirmed_fail_per_s, was.confirmed_pass_per_s)
    effect = _over(now.highest_passed_per_s, was.highest_passed_per_s)
    least, most = 1 / (1 + same_within), 1 + same_within
    change = Change.INCONCLUSIVE
    if other_load:
        reason, low, high = f"another load in A than in B: {', '.join(other_load)}", None, None
    elif invalid := [
        name for name, run in (("A", was), ("B", now)) if run.verdict is Verdict.INVALID
    ]:
        reason, low, high = f"the search of {' and '.join(invalid)} is invalid", None, None
    elif low is None or high is None:
        reason = "a search has no bracket, or none that is confirmed"
    else:
        reason = f"ratio of the confirmed rates between {low:.3f} and {high:.3f}"
        if least <= low and high <= most:
            change = Change.SAME
        elif (low > 1 or high < 1) and effect is not None and not least <= effect <= most:
            change = Change.BETTER if low > 1 else Change.WORSE
    return RunChange(
        stage=SEARCH,
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
        rules_out_worse=low is not None and low >= least,
    )


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _notes(a: RunData, b: RunData, common: Sequence[_Row], paired: Sequence[str]) -> Iterator[str]:
    for name, run in (("A", a), ("B", b)):
        if not run.is_valid:
            yield f"run {name} is invalid"
        if run.is_partial:
            yield f"run {name} is partial: only its whole cells count"
        for each in run.saturation:
            if each.verdict is Verdict.INVALID:
                yield f"run {name}, {each.variant}: {each.reason}"
    stages = list(dict.fromkeys(stage for stage, _ in common))
    is_search = bool(a.saturation and b.saturation)
    if not common and not is_search:
        yield "the runs have no stage with a variant in common"
    for stage in [SEARCH] if is_search else stages:
        if other_load := load_differences(a.manifest, b.manifest, stage):
            yield f"{stage}: another load in A than in B ({', '.join(other_load)}): no verdict"
        elif not is_search and stage not in paired:
            yield f"other requests in A than in B at {stage}: blocks are not paired"
    cells = [cell for run in (a, b) for cell in run.cells]
    for stage in stages:
        why = lacks_tail(
            cell
            for cell in cells
            if (cell.plan.stage, cell.plan.variant) in common and cell.plan.stage == stage
        )
        if why is not None:
            yield f"{stage}: P99 is not compared: {why} in a cell"
    if a.campaign.slo != b.campaign.slo:
        yield "the runs have different SLOs: attainment is not compared"
    yield ONE_START


def _lone_rows(a: RunData, b: RunData) -> list[str]:
    """What is in one run only, and may have vanished; a search has variants, and no rows."""
    names = [
        [f"{each.variant} of the search" for each in run.saturation]
        if run.campaign.search
        else [f"{stage}, {variant}" for stage, variant in rows_of(run.campaign, run.cells)]
        for run in (a, b)
    ]
    return [
        f"only in {run}: {name}"
        for run, mine, others in (("A", *names), ("B", *reversed(names)))
        for name in mine
        if name not in others
    ]


def _notes_of_servers(a: Manifest, b: Manifest) -> list[str]:
    """What the manifests say of the client's host and of the engines, where they differ."""
    both = [name for name in a.variants if name in b.variants]
    was, now = (_told_of(manifest, both) for manifest in (a, b))
    pairs = [(name, was.get(name, "unknown"), now.get(name, "unknown")) for name in was | now]
    return [f"{name}: {one} in A, {other} in B" for name, one, other in pairs if one != other]


def _told_of(manifest: Manifest, variants: Sequence[str]) -> dict[str, str]:
    told = {f"client's {name}": text for name, text in manifest.host.items()}
    for variant in variants:
        facts = manifest.variants[variant]
        if facts.replicas is not None:
            told[f"{variant}: replicas"] = str(facts.replicas)
        told |= {f"{variant}: {name}": text for name, text in facts.facts.items()}
    return told
