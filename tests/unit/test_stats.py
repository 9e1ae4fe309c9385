import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtests.analyse import distributions
from loadtests.analyse.bootstrap import block_length, intervals_of_cells, percentile_intervals
from loadtests.analyse.stats import (
    MIN_SAMPLES,
    PERCENTILES,
    Quantile,
    autocorrelation,
    design_effect,
    effective_size,
    interval_ranks,
    nearest_rank,
    quantile,
    quantiles,
    with_bootstrap,
)

finite = st.floats(min_value=0, max_value=1e6, allow_nan=False)
percentile = st.sampled_from(PERCENTILES)
INF = math.inf


@given(st.lists(st.one_of(finite, st.just(INF)), min_size=1, max_size=400), percentile)
def test_nearest_rank_is_numpys_inverted_cdf(samples, p):
    assert nearest_rank(sorted(samples), p) == np.quantile(samples, p, method="inverted_cdf")


@given(st.lists(finite, min_size=20, max_size=400), percentile)
def test_a_percentile_is_a_sample_inside_its_interval(samples, p):
    q = quantile(samples, p)
    if q.value is None:
        assert q.reason == f"need n >= {round(1 / (1 - p))}, have {len(samples)}"
        return
    assert q.value in samples
    assert q.low is None or q.low <= q.value
    assert q.high is None or q.high >= q.value


@pytest.mark.parametrize(("p", "need"), list(MIN_SAMPLES.items()))
def test_too_small_a_sample_gives_none_and_says_why(p, need):
    assert quantile([1.0] * need, p).value == 1.0
    short = quantile([1.0] * (need - 1), p)
    assert short == Quantile(p, None, need - 1, reason=f"need n >= {need}, have {need - 1}")


def test_smallest_samples_are_those_from_which_a_sample_lies_above():
    assert PERCENTILES == tuple(MIN_SAMPLES) == (0.5, 0.9, 0.95, 0.99, 0.999)
    assert quantile([1.0] * 40, 0.975).value == 1.0
    assert quantile([1.0] * 39, 0.975).reason == "need n >= 40, have 39"


@given(st.integers(0, 30))
def test_failures_are_infinite_samples(n_failures):
    q = quantile([1.0] * 970 + [INF] * n_failures, 0.99)
    n = 970 + n_failures
    assert math.isinf(q.value) == (n_failures > n - math.ceil(0.99 * n))
    assert (q.reason is not None) == math.isinf(q.value)
    assert q.n == n


def test_all_failed_and_none():
    q = quantile([INF] * 3, 0.5)
    assert math.isinf(q.value) and q.reason == "infinite: 100.0% of the requests failed"
    assert quantile([], 0.5) == Quantile(0.5, None, 0, reason="need n >= 1, have 0")
    assert quantiles([], bootstrap=True)[0].value is None
    assert quantiles([[], []])[0].value is None


def test_cells_are_pooled():
    parts = [[3.0, 1.0], [], [2.0, 9.0, 4.0]]
    assert [q.value for q in quantiles(parts, (0.5, 0.9))] == [3.0, None]
    assert quantiles(parts, (0.5,))[0].n == 5


@pytest.mark.parametrize(("p", "smallest"), [(0.95, 72), (0.99, 368), (0.999, 3688)])
def test_a_two_sided_interval_exists_from_the_known_sample_size_on(p, smallest):
    # Hahn & Meeker; GuideLLM PR 1163 gives the same three numbers.
    assert None not in interval_ranks(smallest, p)
    assert None in interval_ranks(smallest - 1, p)


@given(st.integers(1, 3000), percentile)
def test_interval_ranks_cover_with_the_stated_confidence_and_no_more(n, p):
    lower, upper = interval_ranks(n, p)
    below = scipy_stats.binom(n, p)
    if lower is not None:
        assert below.sf(lower - 1) >= 0.975 - 1e-9 > below.sf(lower) - 2e-9
    if upper is not None:
        assert below.cdf(upper - 1) >= 0.975 - 1e-9 > below.cdf(upper - 2) - 2e-9


def series(rng, n, rho):
    """Lognormal, of a first-order autoregressive series."""
    noise, values = rng.normal(size=n), np.empty(n)
    values[0] = noise[0] / math.sqrt(1 - rho**2)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + noise[i]
    return np.exp(0.6 * values)


@pytest.mark.parametrize(
    ("rho", "least", "least_bootstrap"), [(0.0, 0.9, 0.88), (0.5, 0.9, 0.84), (0.8, 0.9, 0.8)]
)
def test_both_intervals_cover_the_true_percentile_about_as_often_as_they_say(
    rho, least, least_bootstrap
):
    rng = np.random.default_rng(12)
    deviation = 0.6 / math.sqrt(1 - rho**2)
    hits = {p: [0, 0] for p in (0.5, 0.9)}
    for _ in range(50):
        cells = series(rng, 600, rho).reshape(3, 200)
        for q in quantiles(cells, tuple(hits), bootstrap=True):
            true = math.exp(deviation * scipy_stats.norm.ppf(q.p))
            hits[q.p][0] += q.low <= true <= q.high
            hits[q.p][1] += q.bootstrap_low <= true <= q.bootstrap_high
    for by_ranks, by_bootstrap in hits.values():
        assert by_ranks / 50 >= least
        assert least_bootstrap <= by_bootstrap / 50 <= 1


def test_an_interval_as_for_independent_samples_would_not_cover():
    """What the effective size is for: without it, half of the intervals miss."""
    rng = np.random.default_rng(3)
    lowest, highest = interval_ranks(900, 0.5)
    hits = 0
    for _ in range(200):
        ordered = np.sort(series(rng, 900, 0.8))
        hits += ordered[lowest - 1] <= 1.0 <= ordered[highest - 1]
    assert hits / 200 < 0.65


def blocks(rng, sd, k=6, m=120):
    """Cells whose level differs by `sd`, and the quantile function of all such cells together."""
    values = np.exp(sd * rng.normal(size=(k, 1)) + 0.3 * rng.normal(size=(k, m)))
    return values, lambda p: math.exp(math.hypot(sd, 0.3) * scipy_stats.norm.ppf(p))


@pytest.mark.parametrize("sd", [0.0, 0.05, 0.1])
def test_intervals_hold_for_the_next_run_too_where_there_are_cells_enough(sd):
    """Without the differences between cells 65 and 40 % of them would at P50, and 80 and 60 % at
    P95.
    """
    rng, hits, n = np.random.default_rng(4), {0.5: 0, 0.95: 0}, 120
    for _ in range(n):
        cells, true = blocks(rng, sd)
        for q in quantiles(cells, tuple(hits)):
            hits[q.p] += q.low <= true(q.p) <= (math.inf if q.high is None else q.high)
    assert min(hits.values()) / n >= 0.91


@pytest.mark.parametrize("sd", [0.0, 0.1])
def test_whole_cells_of_the_bootstrap_hold_the_percentile_a_little_less_often(sd):
    rng, hits, n = np.random.default_rng(5), 0, 60
    for _ in range(n):
        cells, true = blocks(rng, sd)
        (q,) = quantiles(cells, (0.5,), bootstrap=True)
        hits += q.bootstrap_low <= true(0.5) <= q.bootstrap_high
    assert 0.8 <= hits / n < 1


def test_the_design_effect_is_that_of_scipys_analysis_of_variance():
    rng = np.random.default_rng(6)
    t_over_z = scipy_stats.t.ppf(0.975, 5) / scipy_stats.norm.ppf(0.975)
    for sd in (0.0, 0.1, 0.3):
        cells, _ = blocks(rng, sd, m=40)
        f = scipy_stats.f_oneway(*cells).statistic
        want = max(1.0, f * 40 / (f + 39) * t_over_z**2)
        assert design_effect(cells) == pytest.approx(want)
    assert want > 4  # so that one of them is told from 1
    ragged = [each[: 10 + 5 * i] for i, each in enumerate(cells)]
    sizes = np.array([len(each) for each in ragged])
    m = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / 5  # Donner's m0
    f = scipy_stats.f_oneway(*ragged).statistic
    icc = (f - 1) / (f + m - 1)
    assert design_effect(ragged) == pytest.approx((1 + (m - 1) * icc) * t_over_z**2)


def test_too_few_cells_say_nothing_of_their_differences_and_equal_ones_say_there_are_none():
    cells, _ = blocks(np.random.default_rng(7), 0.3)
    assert design_effect(cells[:4]) == 1.0 < 2 < design_effect(cells[:5])
    assert design_effect([*cells[:3], [], [], []]) == 1.0  # no samples, no cell
    assert design_effect([[True, True, False]] * 6) == 1.0
    assert design_effect([[0.5]] * 3 + [[0.7]] * 3) == 1.0  # single samples: nothing within
    assert effective_size([[True] * 40] * 5 + [[False] * 40]) == 1
    pooled = list(np.random.default_rng(8).permutation(cells.ravel()))
    assert effective_size([pooled]) > 600 > 30 > effective_size(cells)


def test_a_finite_percentile_without_an_upper_end_says_why():
    samples = [float(i * 7 % 50) for i in range(50)]
    assert quantile(samples, 0.95).note == "no upper bound: need n_eff >= 72"
    assert quantile(samples, 0.5).note is None
    failing = [INF if i % 30 == 7 else float(i * 7 % 50) for i in range(300)]
    q = quantile(failing, 0.95)
    assert math.isfinite(q.value) and math.isinf(q.high)
    assert q.note == "upper bound infinite: failures reach it"
    assert quantile([INF] * 300, 0.95).note is None  # its reason says so
    both = with_bootstrap(Quantile(0.5, 10.0, 400, low=9.0, high=11.0), 9.0, INF)
    assert both.note == "upper bound of the bootstrap infinite: failures reach it"
    assert with_bootstrap(q, 40.0, INF).note == q.note
    assert with_bootstrap(q, INF, INF).note == q.note


def test_dependent_samples_count_for_less():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=4000)
    chain = [0.0]
    for each in noise:
        chain.append(0.5 * chain[-1] + each)
    assert effective_size([noise]) > 3600
    assert effective_size([chain]) == pytest.approx(4000 / 3, rel=0.15)
    assert effective_size([[1.0] * 50]) == 50
    assert effective_size([[0.1 + 0.2] * 50]) == 50
    assert effective_size([]) == 0 and effective_size([[1.0], [2.0]]) == 2
    free, bound = quantile(sorted(noise)[::2], 0.95), quantile(list(noise), 0.95)
    assert free.high is None  # sorted: next to no independent samples
    assert bound.high - bound.low < 0.3


def test_neighbours_in_different_cells_are_no_pair():
    rises = [list(range(10)) for _ in range(20)]
    falls = [cell[::-1] for cell in rises]
    apart = autocorrelation(rises)
    assert apart == pytest.approx(autocorrelation(falls))
    assert apart > autocorrelation([np.concatenate(rises)])  # its jumps from 9 to 0 count not
    levels = [[1.0, 1.1] * 20, [9.0, 9.1] * 20]
    assert autocorrelation(levels) > 0.9  # a difference between cells is dependence


def test_failures_in_a_row_are_dependent_and_apart_they_are_not():
    ok = [1.0 + 0.01 * (i * 7 % 10) for i in range(200)]
    row = [*ok, *[INF] * 40]
    apart = [INF if i % 6 == 3 else 1.0 + 0.01 * (i * 7 % 10) for i in range(240)]
    assert effective_size([row]) < 10
    assert effective_size([apart]) == 240


def test_block_length_grows_with_dependence_and_is_bounded():
    assert block_length(1000, 0.0) == 1
    assert block_length(1000, 0.5) == math.ceil((1.5 * (4 / 3) ** 2 * 1000) ** (1 / 3)) == 14
    assert block_length(1000, 0.999) == math.ceil(3 * math.sqrt(1000))
    assert block_length(6, 0.99) == 2
    assert block_length(1, 0.9) == 1


def test_the_bootstrap_is_that_of_its_definition():
    """Against the same draws taken in plain Python."""
    samples, ranks = np.append(np.random.default_rng(1).permutation(60) / 7, INF), range(5, 61, 5)
    intervals = percentile_intervals(samples, ranks, length=3, seed=7, n_resamples=200)
    starts = np.random.default_rng(7).integers(0, 61, size=(200, 21))
    drawn = [sorted([samples[(s + i) % 61] for s in row for i in range(3)][:61]) for row in starts]
    found = [sorted(each[rank - 1] for each in drawn) for rank in ranks]
    assert intervals == [(each[5], each[194]) for each in found]
    assert any(each[193] < each[194] for each in found)  # so that one off would be seen


def test_whole_cells_are_drawn_as_the_definition_says():
    rng = np.random.default_rng(1)
    cells = [np.round(rng.exponential(size=size), 1) for size in (7, 20, 12, 9, 15)]
    cells[2][3] = INF
    found = intervals_of_cells(cells, (0.5, 0.9), seed=7, n_resamples=200)
    times = np.random.default_rng(7).multinomial(4, [0.2] * 5, size=200)
    drawn = [
        np.concatenate([np.tile(c, t) for c, t in zip(cells, row, strict=True)]) for row in times
    ]
    for p, interval in zip((0.5, 0.9), found, strict=True):
        values = sorted(np.quantile(each, p, method="inverted_cdf") for each in drawn)
        assert interval == (values[5], values[194])
    assert (
        quantiles(cells, (0.5,), bootstrap=True)[0].bootstrap_low
        == (intervals_of_cells(cells, (0.5,))[0][0])
    )
    apart = [*cells[:4], []]
    assert (
        quantiles(apart, (0.5,), bootstrap=True)[0].bootstrap_low
        == (
            percentile_intervals(
                np.concatenate(apart), [24], block_length(48, autocorrelation(apart))
            )
        )[0][0]
    )


def test_the_bootstrap_agrees_with_scipys_on_independent_samples():
    samples = np.random.default_rng(2).lognormal(3, 0.5, 600)
    ours = quantiles([samples], (0.95,), bootstrap=True)[0]
    theirs = scipy_stats.bootstrap(
        (samples,),
        lambda x, axis: np.percentile(x, 95, axis=axis, method="inverted_cdf"),
        n_resamples=1000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert ours.bootstrap_low == pytest.approx(theirs.low, rel=0.03)
    assert ours.bootstrap_high == pytest.approx(theirs.high, rel=0.03)


def test_the_bootstrap_is_left_out_where_the_tail_is_too_thin_and_is_the_same_each_time():
    samples = list(np.random.default_rng(2).lognormal(3, 0.5, 499))
    by_p = {q.p: q for q in quantiles([samples], bootstrap=True)}
    assert by_p[0.99].value is not None and by_p[0.99].bootstrap_low is None
    assert by_p[0.95].bootstrap_low < by_p[0.95].value < by_p[0.95].bootstrap_high
    assert quantiles([samples], (0.95,), bootstrap=True) == (by_p[0.95],)
    assert quantiles([samples], (0.95,))[0].bootstrap_low is None


def test_intervals_that_disagree_much_are_noted():
    q = Quantile(0.5, 10.0, 400, low=9.0, high=11.0)
    for low, high in ((9.5, 10.5), (8.0, 12.0), (10.5, 12.5)):
        both = with_bootstrap(q, low, high)
        assert (both.bootstrap_low, both.bootstrap_high, both.note) == (low, high, None)
    for low, high in ((9.8, 10.2), (5.0, 15.0), (11.5, 12.5)):
        assert "disagree" in with_bootstrap(q, low, high).note
    assert with_bootstrap(Quantile(0.9, 10.0, 40, low=9.0), 9.9, 10.1).note is None


SHAPE = st.floats(0.3, 5000)


@given(st.floats(0, 1), SHAPE, SHAPE)
def test_beta_cdf_is_scipys(x, a, b):
    assert distributions.beta_cdf(x, a, b) == pytest.approx(
        scipy_stats.beta.cdf(x, a, b), rel=1e-8, abs=1e-12
    )


@given(st.floats(0.001, 0.999), st.floats(0.6, 500))
def test_t_quantile_is_scipys(q, df):
    want = scipy_stats.t.ppf(q, df)
    assert distributions.t_quantile(q, df) == pytest.approx(want, rel=1e-7, abs=1e-9)
    assert distributions.t_cdf(want, df) == pytest.approx(q, rel=1e-8)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_clopper_pearson_is_scipys(n, share):
    k = round(n * share)
    want = scipy_stats.binomtest(k, n).proportion_ci(0.95, "exact")
    have = distributions.clopper_pearson(k, n)
    assert have == pytest.approx((want.low, want.high), rel=1e-7, abs=1e-10)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 80), st.integers(1, 80))
def test_fisher_is_scipys(k_a, n_a, k_b, n_b):
    k_a, k_b = min(k_a, n_a), min(k_b, n_b)
    want = scipy_stats.fisher_exact([[k_a, n_a - k_a], [k_b, n_b - k_b]]).pvalue
    assert distributions.fisher_exact(k_a, n_a, k_b, n_b) == pytest.approx(want, rel=1e-7)
