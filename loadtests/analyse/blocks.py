"""Variants against the baseline, paired by block: the same requests, minutes apart.

In each block the statistic of a variant is divided by the baseline's (a share of requests: less
the baseline's); what differs from block to
block (arrivals, prompts, the machine's mood) cancels. Repeats within a block are averaged in the
logarithm first, so a block counts once.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from loadtests.analyse.nouns import Comparison
from loadtests.analyse.ratios import Blocks, Found, Metric, blocks_of, find, judge, metrics_of
from loadtests.analyse.significance import Effect, holm
from loadtests.analyse.stats import nearest_rank
from loadtests.analyse.summary import rows_of
from loadtests.analyse.whole import WholeCell, whole_cells
from loadtests.campaign import Campaign
from loadtests.records.record import CellPlan, CellRun, RequestRecord


def compare_variants(
    campaign: Campaign,
    plans: Sequence[CellPlan],
    records: Iterable[RequestRecord],
    runs: Sequence[CellRun],
    n_workers: int,
) -> tuple[Comparison, ...]:
    """Every variant against the baseline, at every stage and for each of `METRICS` that it has.

    Over whole cells only. None for a search, whose variants meet different rates.
    """
    return compare_cells(campaign, whole_cells(plans, records, runs, n_workers))


def compare_cells(campaign: Campaign, cells: Sequence[WholeCell]) -> tuple[Comparison, ...]:
    """`compare_variants`, of cells that are known to be whole."""
    if campaign.search is not None:
        return ()
    rows, baseline = rows_of(campaign, cells), campaign.baseline()
    compared: list[Comparison] = []
    for stage in campaign.stages:
        of_stage = {variant: cells for (name, variant), cells in rows.items() if name == stage.name}
        if baseline in of_stage:
            compared += _compare_stage(campaign, stage.name, of_stage)
    return tuple(compared)


def _compare_stage(
    campaign: Campaign, stage: str, cells_of: dict[str, list[WholeCell]]
) -> list[Comparison]:
    slo, same_within, baseline = campaign.slo, campaign.same_within, campaign.baseline()
    metrics = metrics_of([cell for cells in cells_of.values() for cell in cells], slo)
    todo = [(v, metric) for v in cells_of if v != baseline for metric in metrics]
    blocks = {
        (v, metric): blocks_of(metric, cells_of[v], slo) for v in cells_of for metric in metrics
    }
    found = [
        find(metric, blocks[baseline, metric], blocks[v, metric], same_within) for v, metric in todo
    ]
    p_adjusted = holm([each.effect.p_value if each.effect else None for each in found])
    return [
        _comparison(
            stage,
            (variant, baseline),
            metric,
            each,
            p,
            same_within,
            noise_floor(metric, [blocks[variant, metric], blocks[baseline, metric]]),
        )
        for (variant, metric), each, p in zip(todo, found, p_adjusted, strict=True)
    ]


def _comparison(
    stage: str,
    names: tuple[str, str],
    metric: Metric,
    found: Found,
    p_adjusted: float | None,
    same_within: float,
    floor: float | None,
) -> Comparison:
    change, reason = judge(metric, found, p_adjusted, same_within)
    effect = found.effect or Effect(None)
    return Comparison(
        stage=stage,
        metric=metric.name,
        p=metric.p,
        variant=names[0],
        baseline=names[1],
        n_blocks=min(found.n_blocks),
        ratio=None if metric.is_share else effect.value,
        low=effect.low,
        high=effect.high,
        p_value=effect.p_value,
        p_sign_flip=found.p_sign_flip,
        p_adjusted=p_adjusted,
        change=change,
        reason=reason,
        noise_floor=floor,
        values=found.values,
        difference=effect.value if metric.is_share else None,
    )


def noise_floor(metric: Metric, variants: Sequence[Blocks]) -> float | None:
    """Median ratio (>= 1) of two repeats of one variant in one block; None without repeats, and
    for a share.
    """
    if metric.is_share:
        return None
    apart = sorted(
        abs(a - b)
        for blocks in variants
        for repeats in blocks.values.values()
        for a, b in combinations([log for log in repeats if math.isfinite(log)], 2)
    )
    return math.exp(nearest_rank(apart, 0.50)) if apart else None
