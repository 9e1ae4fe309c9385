"""From the folders of load runs to evidence: latency per level, SLO, capacity, pairs.

All pairs of variants are compared as a campaign compares with its baseline: paired by block, the
same requests minutes apart. Holm's correction is over all pairs of a level in the one metric that
decides.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from loadtests.analyse.blocks import compare_cells
from loadtests.analyse.nouns import Change, Comparison, Saturation, VariantSummary
from loadtests.analyse.nouns import Verdict as LoadVerdict
from loadtests.analyse.significance import holm
from loadtests.report.result import CampaignResult, RawRun, read_run, result_of
from loadtests.report.rows import bracket, name_of
from serve_app.advise.contrasts import Contrast, Interval, judge_gain, undecided
from serve_app.advise.evidence import AtLevel, Axis, Capacity, Level, latency_at
from serve_app.domain.errors import ConfigError
from serve_app.domain.verdict import Verdict

METRICS: Mapping[str, tuple[str, float]] = {
    "e2e-p50": ("e2e_user_ms", 0.50),
    "e2e-p95": ("e2e_user_ms", 0.95),
    "e2e-p99": ("e2e_user_ms", 0.99),
    "ttft-p50": ("ttft_user_ms", 0.50),
    "ttft-p95": ("ttft_user_ms", 0.95),
    "ttft-p99": ("ttft_user_ms", 0.99),
    "tpot-p50": ("tpot_ms", 0.50),
}
"""Latencies that can decide, by the names of the command line: those that campaigns compare."""

_VERDICTS = {
    LoadVerdict.PASS: Verdict.PASS,
    LoadVerdict.FAIL: Verdict.FAIL,
    LoadVerdict.INCONCLUSIVE: Verdict.INCONCLUSIVE,
    LoadVerdict.INVALID: Verdict.ERROR,
}


@dataclass(frozen=True)
class Measured:
    """What the runs say of each variant."""

    model: str
    baseline: str
    names: tuple[str, ...]
    metric: str
    """As `E2E P95`."""
    levels: tuple[Level, ...] = ()
    at: Mapping[str, Mapping[str, AtLevel]] = field(default_factory=dict)
    """By variant, then level."""
    capacity: Mapping[str, Capacity] = field(default_factory=dict)
    """Of one replica; only where it is known how many there were."""
    overload: Mapping[str, str] = field(default_factory=dict)
    """Variants that miss the SLO at the lowest rate that was tried, and how."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    contrasts: Mapping[Axis, tuple[Contrast, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_runs(folders: Sequence[Path], metric: str) -> Measured:
    """Everything that the runs say. Raises ConfigError for a folder without a run, for runs of
    different models or baselines, and for a load level that two runs have.
    """
    if metric not in METRICS:
        raise ConfigError(f"no latency {metric!r}; known: {', '.join(METRICS)}")
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise ConfigError("need the folder of at least one run of `quantile loadtest`")
    results = [result_of(run) for run in runs]
    _require_one("model", [(r.folder, r.campaign.target.model) for r in results])
    _require_one("baseline", [(r.folder, r.campaign.baseline()) for r in results])
    names = dict.fromkeys(name for r in results for name in r.campaign.variant_names())
    levels = tuple(level for result in results for level in _levels(result))
    _require_distinct(levels)
    replicas = _replicas(results)
    capacity, overload = _capacities(results, tuple(names), replicas)
    return Measured(
        model=results[0].campaign.target.model,
        baseline=results[0].campaign.baseline(),
        names=tuple(names),
        metric=name_of(*METRICS[metric]),
        levels=levels,
        at={name: _at_levels(results, name, METRICS[metric]) for name in names},
        capacity=capacity,
        overload=overload,
        replicas=replicas,
        contrasts={
            axis: contrasts
            for run, result in zip(runs, results, strict=True)
            for axis, contrasts in _pairs(run, result, METRICS[metric])
        },
        notes=(
            *(note for result in results for note in _notes(result)),
            *_replica_notes(names, replicas),
        ),
    )


def _require_one(what: str, found: Sequence[tuple[Path, str]]) -> None:
    if len({value for _, value in found}) > 1:
        have = ", ".join(f"{folder} has {value}" for folder, value in found)
        raise ConfigError(f"the runs need one {what}: {have}; give those of one alone")


def _require_distinct(levels: Sequence[Level]) -> None:
    runs: dict[str, str] = {}
    for level in levels:
        if level.name in runs:
            raise ConfigError(
                f"{runs[level.name]} and {level.run} both have the load level {level.name}: "
                "give one of them, or name the stages apart"
            )
        runs[level.name] = level.run


def _levels(result: CampaignResult) -> Iterator[Level]:
    """The stages of a run; the probes of a search are no levels, as each variant has its own."""
    if result.campaign.search is not None:
        return
    gated = result.gated_stages
    for stage in result.campaign.stages:
        row = next((row for row in result.summaries if row.stage == stage.name), None)
        if row is not None:
            yield Level(stage.name, _load(row), str(result.folder), stage.name in gated)


def _load(row: VariantSummary) -> str:
    if row.rate_per_s is None:
        return f"{row.concurrency} in flight"
    return f"{row.rate_per_s:g}/s"


def _at_levels(
    results: Sequence[CampaignResult], name: str, metric: tuple[str, float]
) -> dict[str, AtLevel]:
    return {
        row.stage: _at(result, row, metric)
        for result in results
        if result.campaign.search is None
        for row in result.summaries
        if row.variant == name
    }


def _at(result: CampaignResult, row: VariantSummary, metric: tuple[str, float]) -> AtLevel:
    summary = row.latencies[metric[0]]
    known = summary.with_failures or summary.quantiles
    found = next(q for q in known if q.p == metric[1])
    latency = None if found.value is None else Interval(found.value, found.low, found.high)
    faults = (*result.problems, *row.invalid_reasons)
    if faults:
        return AtLevel(latency, Verdict.ERROR, "; ".join(faults))
    slo = None if row.slo_verdict is None else _VERDICTS[row.slo_verdict]
    return AtLevel(latency, slo, row.slo_reason or "")


def _replicas(results: Sequence[CampaignResult]) -> dict[str, int]:
    """Ready replicas of each variant, where every run that says so says the same."""
    found: dict[str, set[int]] = {}
    for result in results:
        for name, facts in result.manifest.variants.items():
            if facts.replicas is not None:
                found.setdefault(name, set()).add(facts.replicas)
    return {name: counts.pop() for name, counts in found.items() if len(counts) == 1}


def _capacities(
    results: Sequence[CampaignResult], names: Sequence[str], replicas: Mapping[str, int]
) -> tuple[dict[str, Capacity], dict[str, str]]:
    """What each carries within the SLO: by a search where there is one, else by the stages."""
    capacity: dict[str, Capacity] = {}
    overload: dict[str, str] = {}
    for result in sorted(results, key=lambda each: each.campaign.search is None):
        if result.problems:
            continue
        for name in names:
            if name in capacity or name in overload:
                continue
            n_replicas = replicas.get(name)
            rows = [row for row in result.summaries if row.variant == name]
            found = next((each for each in result.saturation if each.variant == name), None)
            if found is not None and found.verdict is LoadVerdict.FAIL:
                overload[name] = bracket(found)
                continue
            known = _searched(found, rows) if found is not None else _staged(rows)
            if known is not None and n_replicas is not None:
                capacity[name] = _of_one_replica(known, n_replicas)
    return capacity, overload


def _searched(found: Saturation, rows: Sequence[VariantSummary]) -> Capacity | None:
    passed = found.highest_passed_per_s
    row = next((row for row in rows if row.rate_per_s == passed), None)
    if passed is None or row is None or found.verdict is LoadVerdict.INVALID:
        return None
    rate = Interval(passed, found.confirmed_pass_per_s, found.confirmed_fail_per_s)
    return Capacity(rate, _tokens(rate, row), f"search: SLO {bracket(found)}")


def _staged(rows: Sequence[VariantSummary]) -> Capacity | None:
    """The highest open-loop stage at which, and below which, the SLO holds."""
    by_rate = sorted(
        ((row.rate_per_s, row) for row in rows if row.rate_per_s is not None),
        key=lambda pair: pair[0],
    )
    best, failed = None, None
    for rate_per_s, row in by_rate:
        if row.slo_verdict is LoadVerdict.PASS:
            best = row
        else:
            failed = rate_per_s if row.slo_verdict is LoadVerdict.FAIL else None
            break
    if best is None or best.rate_per_s is None:
        return None
    rate = Interval(best.rate_per_s, best.rate_per_s, failed)
    return Capacity(rate, _tokens(rate, best), f"SLO holds at {best.stage}, {_load(best)}")


def _tokens(rate: Interval, row: VariantSummary) -> Interval:
    """Output tokens per second at a rate, by the tokens per request of that row."""
    per_request = row.output_tokens_per_s / row.offered_per_s
    low, high = (None if end is None else end * per_request for end in (rate.low, rate.high))
    return Interval(rate.value * per_request, low, high)


def _of_one_replica(known: Capacity, n_replicas: int) -> Capacity:
    def part(of: Interval) -> Interval:
        low, high = (None if end is None else end / n_replicas for end in (of.low, of.high))
        return Interval(of.value / n_replicas, low, high)

    return Capacity(part(known.requests_per_s), part(known.output_tokens_per_s), known.source)


def _pairs(
    run: RawRun, result: CampaignResult, metric: tuple[str, float]
) -> Iterator[tuple[Axis, tuple[Contrast, ...]]]:
    names = result.campaign.variant_names()
    found: dict[tuple[str, str, str], Comparison] = {}
    for baseline in names if result.campaign.search is None else ():
        for each in compare_cells(run.campaign.with_target(baseline=baseline), run.whole):
            if (each.metric, each.p) == metric:
                found[each.stage, each.variant, baseline] = each
    invalid = {(r.stage, r.variant) for r in result.summaries if not r.is_valid}
    margin = result.campaign.same_within
    for level in _levels(result):
        pairs = [pair for pair in combinations(names, 2) if (level.name, *pair) in found]
        known = [found[level.name, *pair] for pair in pairs]
        adjusted = holm([each.p_value for each in known])
        yield (
            latency_at(level.name),
            tuple(
                _contrast(each, p, margin, _doubt(result, each, invalid))
                for each, p in zip(known, adjusted, strict=True)
            ),
        )


def _doubt(result: CampaignResult, each: Comparison, invalid: set[tuple[str, str]]) -> str | None:
    """Why the two must not be compared."""
    if result.problems:
        return f"the run is invalid: {result.problems[0]}"
    bad = [name for name in (each.variant, each.baseline) if (each.stage, name) in invalid]
    return f"the run of {' and '.join(bad)} at {each.stage} is invalid" if bad else None


def _contrast(
    each: Comparison, p_adjusted: float | None, same_within: float, doubt: str | None
) -> Contrast:
    """A ratio of latencies as a gain: below 1 is better."""
    first, second, margin = each.variant, each.baseline, math.log1p(same_within)
    if doubt is not None:
        return undecided(first, second, margin, doubt)
    if each.ratio is None or each.low is None or each.high is None or p_adjusted is None:
        return _by_signs(each, margin)
    gain = Interval(-math.log(each.ratio), -math.log(each.high), -math.log(each.low))
    return judge_gain(first, second, gain, margin, p_value=p_adjusted, reason="")


def _by_signs(each: Comparison, margin: float) -> Contrast:
    """Where failures make a block infinite there is no ratio, and the blocks' signs decide."""
    better, worse = each.change is Change.BETTER, each.change is Change.WORSE
    gain = -math.log(each.ratio) if each.ratio else None
    return Contrast(
        each.variant, each.baseline, gain, None, None, margin,
        is_better=better, is_worse=worse, is_not_worse=better, is_not_better=worse,
        reason=each.reason,
    )  # fmt: skip


def _replica_notes(names: Iterable[str], replicas: Mapping[str, int]) -> Iterator[str]:
    if unknown := [name for name in names if name not in replicas]:
        yield (
            f"the runs do not say how many replicas there were of {', '.join(unknown)}, or not "
            "the same: what one carries is not known"
        )


def _notes(result: CampaignResult) -> Iterator[str]:
    if result.is_partial:
        done, planned = result.n_cells_done, result.n_cells
        yield (f"{result.folder} did not run to its end: {done} of {planned or 'its'} cells count")
    for problem in result.problems:
        yield f"{result.folder} is invalid: {problem}"
