"""Paired comparison of variants: tests against scipy, edges, and errors of the first kind."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtests.analyse.blocks import compare_cells, compare_variants
from loadtests.analyse.nouns import Change
from loadtests.analyse.ratios import METRICS, Metric, blocks_of, find, judge, statistic
from loadtests.analyse.significance import Ratio, holm, paired_ratio, sign_flip_p, welch_ratio
from tests.fakes.load_cells import campaign_of, cell_of

CAMPAIGN = campaign_of(("base", "other"))
P50 = Metric("ttft_user_ms", 0.5)
logs = st.lists(st.floats(-2, 2), min_size=2, max_size=12)


def cells_of(base, other, **plan):
    """One cell per block and variant; each entry is the TTFTs of a block."""
    return [
        cell_of(ttfts, index=2 * block + i, variant=name, block=block, **plan)
        for i, (name, blocks) in enumerate((("base", base), ("other", other)))
        for block, ttfts in enumerate(blocks)
    ]


def compared(base, other, metric=P50, campaign=CAMPAIGN):
    found = compare_cells(campaign, cells_of(base, other))
    return next(each for each in found if (each.metric, each.p) == metric)


@settings(deadline=None)
@given(logs)
def test_paired_ratio_is_scipys_t(values):
    ratio = paired_ratio(values)
    assert math.log(ratio.value) == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) < 1e-6:
        return
    want = scipy_stats.ttest_1samp(values, 0)
    interval = want.confidence_interval(0.95)
    assert ratio.p_value == pytest.approx(want.pvalue, rel=1e-6, abs=1e-12)
    assert (ratio.low, ratio.high) == pytest.approx(
        (math.exp(interval.low), math.exp(interval.high)), rel=1e-6
    )


@settings(deadline=None)
@given(logs, logs)
def test_welch_ratio_is_scipys(a, b):
    if min(np.std(a), np.std(b)) < 1e-6:
        return
    ratio, want = welch_ratio(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    interval = want.confidence_interval(0.95)
    assert ratio.p_value == pytest.approx(want.pvalue, rel=1e-6, abs=1e-12)
    assert ratio.low == pytest.approx(math.exp(interval.low), rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99).map(lambda i: i / 50), min_size=2, max_size=9))
def test_sign_flips_are_scipys_permutation_test(values):
    want = scipy_stats.permutation_test(
        (np.array(values),),
        lambda x, axis: np.abs(np.sum(x, axis=axis)),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
    )
    assert sign_flip_p(values) == pytest.approx(want.pvalue)


def test_sign_flips_beyond_sixteen_blocks_are_sampled_and_the_same_each_time():
    values = [0.1 + 0.01 * i for i in range(17)]
    assert sign_flip_p(values) == sign_flip_p(values) <= 5 / 20_001  # in truth 2 / 2^17
    even = [0.1 * (-1) ** i for i in range(20)]
    assert sign_flip_p(even) == 1
    assert sign_flip_p(values[:5]) == 2 / 32


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    want = scipy_stats.false_discovery_control  # scipy has no Holm; this one is smaller everywhere
    p = [0.001, 0.2, 0.03, 0.04]
    assert all(h >= f - 1e-12 for h, f in zip(holm(p), want(p), strict=True))


def test_statistics_of_a_cell():
    cell = cell_of([10.0] * 19 + [None], variant="base")
    assert statistic(P50, cell) == (10, None)
    assert statistic(Metric("ttft_user_ms", 0.95), cell) == (10, None)
    assert statistic(Metric("e2e_user_ms", 0.5), cell) == (40, None)
    assert statistic(Metric("tpot_ms", 0.5), cell) == (10, None)
    assert statistic(Metric("output_tokens_per_s", None), cell) == (19 * 4 / 2, None)
    assert math.isinf(statistic(Metric("ttft_user_ms", 0.95), cell_of([1.0] * 18 + [None] * 2))[0])
    assert (
        statistic(Metric("ttft_user_ms", 0.95), cell_of([1.0] * 19))[1] == "need n >= 20, have 19"
    )


def steady(scale, n_blocks=5, n=40):
    """Blocks that differ much from each other and hardly in their ratio."""
    return [
        [scale * (1 + block) * (10 + 0.1 * i) * (1 + 0.001 * (block % 2)) for i in range(n)]
        for block in range(n_blocks)
    ]


def test_a_clear_difference_is_found_through_the_differences_between_blocks():
    faster, slower = compared(steady(1), steady(0.8)), compared(steady(1), steady(1.25))
    assert (faster.change, slower.change) == (Change.BETTER, Change.WORSE)
    assert faster.ratio == pytest.approx(0.8) and slower.ratio == pytest.approx(1.25)
    assert faster.high < 1 < slower.low
    assert (faster.n_blocks, faster.p_sign_flip) == (5, 2 / 32)
    assert faster.values[1] / faster.values[0] == pytest.approx(0.8)
    assert faster.p_adjusted >= faster.p_value
    assert (
        compared(steady(1), steady(0.8), Metric("output_tokens_per_s", None)).change is Change.SAME
    )


def test_more_tokens_are_better():
    metric = METRICS[-1]
    for low, high, change in ((1.1, 1.2, "better"), (0.8, 0.9, "worse")):
        found = find(metric, *(blocks_of(metric, [cell_of([1.0])]) for _ in range(2)))
        found = found._replace(ratio=Ratio((low + high) / 2, low, high, 0.001))
        assert judge(metric, found, 0.01, 0.05)[0] == change


def test_a_difference_that_is_sure_alone_but_not_among_all_is_inconclusive():
    found = find(P50, *(blocks_of(P50, [cell_of([1.0])]) for _ in range(2)))
    found = found._replace(ratio=Ratio(1.2, 1.01, 1.4, 0.02))
    assert judge(P50, found, 0.04, 0.05)[0] is Change.WORSE
    change, reason = judge(P50, found, 0.06, 0.05)
    assert change is Change.INCONCLUSIVE and "adjusted p 0.06" in reason


def test_a_difference_within_the_margin_counts_as_none_however_sure():
    found = compared(steady(1), steady(1.02))
    assert found.change is Change.SAME and found.p_adjusted < 0.05 and found.low > 1
    strict = campaign_of(("base", "other"), same_within=0.01)
    assert compared(steady(1), steady(1.02), campaign=strict).change is Change.WORSE


def test_identical_runs_are_the_same():
    found = compared(steady(1), steady(1))
    assert (found.change, found.ratio, found.low, found.high) == (Change.SAME, 1, 1, 1)
    assert found.p_value == found.p_sign_flip == 1


def test_one_block_has_a_ratio_and_no_more():
    found = compared(steady(1, 1), steady(2, 1))
    assert found.ratio == pytest.approx(2) and found.low is found.p_value is None
    assert found.change is Change.INCONCLUSIVE and found.reason == "need 2 blocks or more, have 1"


def test_noise_is_inconclusive():
    other = [
        [v * scale for v in block]
        for block, scale in zip(steady(1), (0.5, 2, 0.9, 1.4, 1.1), strict=True)
    ]
    found = compared(steady(1), other)
    assert found.change is Change.INCONCLUSIVE and found.low < 1 < found.high


def test_a_percentile_that_one_block_lacks_is_not_made_of_the_others():
    other = steady(1)
    other[2] = other[2][:12]
    found = compared(steady(1), other, Metric("ttft_user_ms", 0.95))
    assert found.ratio is None and found.change is Change.INCONCLUSIVE
    assert found.reason == "ttft_user_ms P95 of other in block 3: need n >= 20, have 12"
    assert compared(steady(1), other).ratio is not None  # the median is there


def test_failures_that_reach_a_percentile():
    broken = steady(1)
    broken[1] = [None] * 30 + broken[1][:10]
    worse, better = compared(steady(1), broken), compared(broken, steady(1))
    assert (worse.change, better.change) == (Change.WORSE, Change.BETTER)
    assert worse.ratio is worse.p_value is None and math.isinf(worse.values[1])
    assert worse.reason == (
        "ttft_user_ms P50 is infinite by failures in 1 of 5 blocks, of the baseline in none"
    )
    assert compared(broken, broken).change is Change.INCONCLUSIVE
    dead = [[None] * 40 for _ in range(5)]
    assert compared(steady(1), dead, METRICS[-1]).reason.startswith("no tokens in 5 of 5")
    assert compared(steady(1), dead, Metric("tpot_ms", 0.5)).reason.endswith("need n >= 1, have 0")


def test_repeats_count_once_per_block_and_give_the_noise_floor():
    cells = []
    for block in range(3):
        for repeat, scale in enumerate((1.0, 1.21)):
            for name in ("base", "other"):
                ttfts = [10.0 * scale * (1.1 if name == "other" else 1)] * 20
                cells.append(
                    cell_of(ttfts, index=len(cells), variant=name, block=block, repeat=repeat)
                )
    found = compare_cells(CAMPAIGN, cells)[0]
    assert (found.n_blocks, found.ratio) == (3, pytest.approx(1.1))
    assert found.noise_floor == pytest.approx(1.21)
    assert found.values == pytest.approx((11, 12.1))
    assert compared(steady(1), steady(1)).noise_floor is None


def test_only_blocks_with_both_count_and_a_lone_variant_is_left_out():
    cells = [c for c in cells_of(steady(1), steady(2)) if c.plan.index not in (0, 9)]
    found = compare_cells(CAMPAIGN, cells)[0]
    assert found.n_blocks == 3
    assert compare_cells(CAMPAIGN, [c for c in cells if c.plan.variant == "other"]) == ()
    one = [c for c in cells if c.plan.index in (2, 7)]
    assert compare_cells(CAMPAIGN, one)[0].reason == "no block of both"


def test_raw_records_give_the_same_and_a_search_compares_none():
    cells = cells_of(steady(1), steady(0.8))
    raw = (
        [c.plan for c in cells],
        [r for c in cells for r in c.records],
        [run for c in cells for run in c.runs],
    )
    assert compare_variants(CAMPAIGN, *raw, 1) == compare_cells(CAMPAIGN, cells) != ()
    assert compare_variants(CAMPAIGN, *raw, 2) == ()
    search = {"duration_s": 2, "low_per_s": 2, "high_per_s": 20}
    searching = campaign_of(("base", "other"), stages=None, search=search)
    assert compare_cells(searching, cells) == ()


@pytest.mark.parametrize(("true", "least", "most"), [(1.0, 0.0, 0.125), (1.3, 0.8, 1.0)])
def test_errors_of_the_first_kind_are_rare_and_a_real_difference_is_found(true, least, most):
    """How many runs of three variants have any finding at all, over all metrics of the stage.

    In 300 A/A runs it was 4 % with 6 blocks and 5 % with 3 (0.4 % of the single comparisons);
    the bound leaves room for the luck of 40.
    """
    rng = np.random.default_rng(4)
    campaign = campaign_of(("base", "b", "c"), same_within=0.001)
    n_found = 0
    for _ in range(40):
        cells = [
            cell_of(
                rng.lognormal(3, 0.3, 40) * mood * (true if name != "base" else 1),
                index=3 * block + i,
                variant=name,
                block=block,
                tpot_ms=10 * rng.lognormal(0, 0.05) * (true if name != "base" else 1),
            )
            for block, mood in enumerate(rng.lognormal(0, 0.5, 6))
            for i, name in enumerate(campaign.variant_names())
        ]
        changes = {each.change for each in compare_cells(campaign, cells)}
        n_found += bool(changes & {Change.BETTER, Change.WORSE})
    assert least <= n_found / 40 <= most
