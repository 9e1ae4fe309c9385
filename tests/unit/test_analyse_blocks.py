"""Paired comparison of variants: tests against scipy, edges, and errors of the first kind."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtests.analyse.blocks import compare_cells, compare_variants
from loadtests.analyse.nouns import Change
from loadtests.analyse.ratios import Metric, blocks_of, find, judge, statistic
from loadtests.analyse.significance import (
    Effect,
    holm,
    paired,
    sign_flip_p,
    sign_test_p,
    welch,
)
from tests.fakes.load_cells import campaign_of, cell_of

CAMPAIGN = campaign_of(("base", "other"))
P50, P95 = Metric("ttft_user_ms", 0.5), Metric("ttft_user_ms", 0.95)
TOKENS = Metric("output_tokens_per_s", None)
ERRORS, MET = Metric("error_rate", None), Metric("attainment", None)
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


@given(logs)
def test_paired_is_scipys_t(values):
    found = paired(values)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) < 1e-6:
        return
    want = scipy_stats.ttest_1samp(values, 0)
    interval = want.confidence_interval(0.95)
    assert found.p_value == pytest.approx(want.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    ratio = found.exp()
    assert (ratio.value, ratio.p_value) == (math.exp(found.value), found.p_value)
    assert (ratio.low, ratio.high) == (math.exp(found.low), math.exp(found.high))


@given(logs, logs)
def test_welch_is_scipys(a, b):
    if min(np.std(a), np.std(b)) < 1e-6:
        return
    found, want = welch(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    interval = want.confidence_interval(0.95)
    assert found.p_value == pytest.approx(want.pvalue, rel=1e-6, abs=1e-12)
    assert found.low == pytest.approx(interval.low, rel=1e-6)


@pytest.mark.parametrize(("less", "more"), [(0, 0), (0, 5), (6, 0), (3, 9), (4, 4), (20, 60)])
def test_sign_test_is_scipys(less, more):
    want = scipy_stats.binomtest(less, less + more).pvalue if less + more else 1.0
    assert sign_test_p(less, more) == pytest.approx(want)


@given(st.lists(st.integers(-99, 99).map(lambda i: i / 64), min_size=2, max_size=9))
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
    assert statistic(P50, cell, None) == (10, None)
    assert statistic(P95, cell, None) == (10, None)
    assert statistic(Metric("e2e_user_ms", 0.5), cell, None) == (40, None)
    assert statistic(Metric("tpot_ms", 0.5), cell, None) == (10, None)
    assert statistic(TOKENS, cell, None) == (19 * 4 / 2, None)
    assert statistic(ERRORS, cell, None) == (1 / 20, None)
    assert statistic(MET, cell, CAMPAIGN.slo) == (19 / 20, None)
    short = cell_of([10.0] * 19, n_measured=20)  # a request without a record has failed
    assert statistic(ERRORS, short, None) == (1 / 20, None)
    assert statistic(MET, short, CAMPAIGN.slo) == (19 / 20, None)
    assert statistic(ERRORS, cell_of([]), None) == (None, "no request was planned")
    assert math.isinf(statistic(P95, cell_of([1.0] * 18 + [None] * 2), None)[0])
    assert statistic(P95, cell_of([1.0] * 19), None)[1] == "need n >= 20, have 19"


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
    assert compared(steady(1), steady(0.8), TOKENS).change is Change.SAME


def found_of(metric, *effect):
    """A finding with this value, interval and p-value."""
    blocks = blocks_of(metric, [cell_of([1.0])], None)
    return find(metric, blocks, blocks, 0.05)._replace(effect=Effect(*effect))


def test_more_tokens_are_better():
    for low, high, change in ((1.1, 1.2, "better"), (0.8, 0.9, "worse")):
        found = found_of(TOKENS, (low + high) / 2, low, high, 0.001)
        assert judge(TOKENS, found, 0.01, 0.05)[0] == change


@pytest.mark.parametrize(
    ("value", "low", "high", "change"),
    [
        (1.03, 1.005, 1.056, "inconclusive"),
        (1.05, 1.001, 1.10, "inconclusive"),
        (1.051, 1.001, 1.10, "worse"),
        (0.96, 0.93, 0.99, "inconclusive"),
        (0.95, 0.91, 0.99, "better"),
    ],
)
def test_what_counts_as_none_is_neither_better_nor_worse(value, low, high, change):
    found, reason = judge(P50, found_of(P50, value, low, high, 0.001), 0.001, 0.05)
    assert found == change
    assert ("counts as none" in reason) == (change == "inconclusive")


def test_a_difference_that_is_sure_alone_but_not_among_all_is_inconclusive():
    found = found_of(P50, 1.2, 1.01, 1.4, 0.02)
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
    found = compared(steady(1), other, P95)
    assert found.ratio is None and found.change is Change.INCONCLUSIVE
    assert found.reason == "ttft_user_ms P95 of other in block 3: need n >= 20, have 12"
    assert compared(steady(1), other).ratio is not None  # the median is there


def broken_in(blocks, broken):
    """`blocks`, with failures that reach P50 in those of `broken`."""
    return [[None] * 30 + b[:10] if i in broken else b for i, b in enumerate(blocks)]


def test_failures_that_reach_a_percentile_in_one_block_decide_nothing():
    """Slower in every block, but for one in which the baseline has none: never better."""
    bad = broken_in(steady(1, 6), {2})
    slower = compared(bad, steady(2, 6))
    assert slower.change is Change.INCONCLUSIVE
    assert slower.ratio is slower.low is slower.p_sign_flip is None
    assert math.isinf(slower.values[0])
    assert slower.p_value == pytest.approx(14 / 64)  # 5 of 6 higher
    assert slower.reason.startswith(
        "ttft_user_ms P50 is infinite in 0 of 6 blocks, of the baseline in 1 of 6; "
        "lower in 1, higher in 5, adjusted p of signs"
    )
    for one, other in ((bad, steady(1, 6)), (steady(1, 6), bad)):
        assert compared(one, other).change is Change.INCONCLUSIVE
    assert compared(bad, bad).p_value == 1


def test_signs_of_blocks_decide_from_six_on_and_after_holm():
    def judged(n_blocks, p_factor=1):
        cells = cells_of(broken_in(steady(1, n_blocks), {0}), steady(0.5, n_blocks))
        sides = (
            blocks_of(P50, [c for c in cells if c.plan.variant == v], None)
            for v in ("base", "other")
        )
        found = find(P50, *sides, 0.05)
        return judge(P50, found, min(1, found.effect.p_value * p_factor), 0.05)

    change, reason = judged(5)
    assert change is Change.INCONCLUSIVE and reason.endswith("need 6 blocks or more")
    assert judged(6)[0] is Change.BETTER and judged(6, 2)[0] is Change.INCONCLUSIVE
    assert judged(8, 6)[0] is Change.BETTER
    worse = compared(steady(1, 12), broken_in(steady(1.5, 12), {0}))
    assert worse.change is Change.WORSE and worse.p_value == pytest.approx(2 / 2**12)
    assert worse.p_adjusted >= worse.p_value


def test_signs_within_the_margin_say_nothing():
    near = compared(steady(1, 12), broken_in(steady(1.03, 12), {0}))
    assert near.change is Change.INCONCLUSIVE and "lower in 0, higher in 1," in near.reason


def test_no_tokens_and_no_samples():
    dead = [[None] * 40 for _ in range(5)]
    assert compared(steady(1), dead, TOKENS).reason.startswith("no tokens in 5 of 5")
    assert compared(steady(1), dead, Metric("tpot_ms", 0.5)).reason.endswith("need n >= 1, have 0")
    assert compared(steady(1), dead, ERRORS).change is Change.WORSE


def with_failed(shares, n=400):
    """One block per share of failures, evenly spread."""
    return [[None if int((i + 1) * s) > int(i * s) else 9.0 for i in range(n)] for s in shares]


def test_error_rate_and_attainment_are_compared_by_block():
    good, bad = with_failed([0.01, 0.02, 0.03]), with_failed([0.05, 0.065, 0.07])
    errors, met = (compared(good, bad, metric) for metric in (ERRORS, MET))
    assert errors.values == pytest.approx((0.02, 0.185 / 3))
    assert errors.ratio is None and errors.effect == errors.difference
    assert errors.difference == pytest.approx(0.125 / 3) == -met.difference
    want = scipy_stats.ttest_1samp([0.04, 0.045, 0.04], 0)
    interval = want.confidence_interval(0.95)
    assert errors.p_value == pytest.approx(want.pvalue)
    assert (errors.low, errors.high) == pytest.approx((interval.low, interval.high))
    assert (errors.change, met.change) == (Change.WORSE, Change.WORSE)
    assert errors.noise_floor is None and errors.p_sign_flip == 2 / 8
    assert compared(bad, good, ERRORS).change is Change.BETTER
    wide = compared(good, good, ERRORS)
    assert wide.change is Change.INCONCLUSIVE  # 1200 requests leave room for more than 1 point
    assert "by the counts alone [-1.2" in wide.reason
    many = with_failed([0.01, 0.02, 0.03], 1000)
    assert compared(many, many, ERRORS).change is Change.SAME
    free = campaign_of(("base", "other"), slo=None)
    metrics = {c.metric for c in compare_cells(free, cells_of(good, bad))}
    assert "error_rate" in metrics and "attainment" not in metrics


def test_blocks_that_agree_by_luck_are_not_sure_of_few_requests():
    """t alone is: the differences are all alike, so that its interval has no width."""
    few = [[9.0] * 49 + [None]] * 3
    one = compared([[9.0] * 50] * 3, few, ERRORS)
    assert one.p_value == 0 and one.change is Change.INCONCLUSIVE
    assert "the counts alone may be luck" in one.reason
    none = compared([[9.0] * 50] * 3, [[9.0] * 50] * 3, ERRORS)
    assert none.low == none.high == 0 and none.change is Change.INCONCLUSIVE
    within = compared(with_failed([0] * 5, 1000), with_failed([0.008] * 5, 1000), ERRORS)
    assert within.p_adjusted < 0.05 and within.change is not Change.WORSE


def test_p99_is_compared_where_every_cell_has_the_samples():
    assert {c.p for c in compare_cells(CAMPAIGN, cells_of(steady(1), steady(1)))} == {
        0.5, 0.95, None,
    }  # fmt: skip
    found = compare_cells(CAMPAIGN, cells_of(steady(1, n=100), steady(1.3, n=100)))
    tails = [c for c in found if c.p == 0.99]
    assert [c.metric for c in tails] == ["ttft_user_ms", "e2e_user_ms"]
    assert tails[0].ratio == pytest.approx(1.3) and tails[0].change is Change.WORSE
    short = steady(1.3, n=100)
    short[3] = short[3][:99]
    assert 0.99 not in {c.p for c in compare_cells(CAMPAIGN, cells_of(steady(1, n=100), short))}


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
