"""McNemar, non-inferiority, Holm and the bootstrap against scipy and statsmodels; their errors by
simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from serve_app.domain.verdict import Verdict
from serve_app.evaluate.agreement import MAX_LOG, ratio_estimate
from serve_app.evaluate.likelihood import Log
from serve_app.evaluate.statistics import bootstrap
from serve_app.evaluate.statistics.binomial import (
    Discordance,
    mcnemar_exact,
    minimal_detectable,
    wilson_interval,
)
from serve_app.evaluate.statistics.decide import judge_noninferiority, worst
from serve_app.evaluate.statistics.noninferiority import (
    PairedDelta,
    cluster_error,
    holm,
    tango_z,
    z_of,
)
from serve_app.evaluate.statistics.student import t_score, upper_tail

COUNTS = [
    tuple(map(int, row))
    for size in (3, 10, 60, 900)
    for row in np.random.default_rng(size).integers(0, size, (8, 2))
]


@pytest.fixture
def rng():
    """Each test its own draws: none depends on which others ran before."""
    return np.random.default_rng(7)


@pytest.mark.parametrize(("lost", "gained"), COUNTS)
def test_mcnemar_is_statsmodels(lost, gained):
    theirs = mcnemar([[50, lost], [gained, 9]], exact=True).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(min(1.0, theirs), rel=1e-9)


@pytest.mark.parametrize(("lost", "gained"), COUNTS)
def test_delta_and_its_error_are_those_of_the_differences(lost, gained):
    differences = np.repeat([-1.0, 1.0, 0.0], [lost, gained, 1500 - lost - gained + 500])
    found = Discordance(len(differences), lost, gained)
    assert found.delta == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(scipy.stats.sem(differences, ddof=0))


@pytest.mark.parametrize(("lost", "gained"), [c for c in COUNTS if sum(c)])
def test_score_test_at_zero_is_mcnemars_chi_square(lost, gained):
    theirs = mcnemar([[50, lost], [gained, 9]], exact=False, correction=False).statistic
    assert tango_z(Discordance(2000, lost, gained), 0.0) ** 2 == pytest.approx(theirs)


@pytest.mark.parametrize(("lost", "gained"), COUNTS)
@pytest.mark.parametrize("delta", [-0.2, -0.01, 0.003, 0.4])
def test_score_test_is_the_likelihoods(lost, gained, delta):
    """Tango's closed form against the constrained likelihood, maximised numerically."""
    n = 2000

    def minus_log_likelihood(p_lost: float) -> float:
        p_gained = p_lost + delta
        rest = 1 - p_lost - p_gained
        terms = ((lost, p_lost), (gained, p_gained), (n - lost - gained, rest))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    best = scipy.optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    theirs = (gained - lost - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))
    assert tango_z(Discordance(n, lost, gained), delta) == pytest.approx(theirs, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize(("lost", "gained"), COUNTS)
def test_bounds_are_where_the_test_turns(lost, gained):
    delta = PairedDelta(Discordance(2000, lost, gained), None)
    z = z_of(0.05)
    assert tango_z(delta.found, delta.lower(z), -0.5) == pytest.approx(z, abs=1e-6)
    assert tango_z(delta.found, delta.upper(z), 0.5) == pytest.approx(-z, abs=1e-6)
    low, high = delta.interval
    assert low < delta.found.delta < high
    theirs = scipy.optimize.brentq(
        lambda at: tango_z(delta.found, at, -0.5) - z, -0.9, delta.found.delta
    )
    assert delta.lower(z) == pytest.approx(theirs, abs=1e-9)


def test_nothing_flipped_is_not_certainty():
    low, high = PairedDelta(Discordance(100, 0, 0), None).interval
    assert low == pytest.approx(-0.0461, abs=5e-4)
    assert high == pytest.approx(0.0461, abs=5e-4)


def test_clustered_error_is_statsmodels(rng):
    clusters = np.repeat(np.arange(60), 5)
    shared = rng.normal(size=60)[clusters]
    differences = shared + rng.normal(size=300)
    fit = sm.OLS(differences, np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    theirs = float(fit.bse[0]) * math.sqrt(60 / 59)
    assert cluster_error(differences, clusters) == pytest.approx(theirs)
    assert cluster_error(differences, np.zeros(300, int)) is None


def test_items_that_belong_together_widen_the_interval(rng):
    first = np.repeat(rng.random(100) < 0.8, 6)
    second = np.where(np.repeat(rng.random(100) < 0.1, 6), ~first, first)
    alone = PairedDelta.of(first, second)
    together = PairedDelta.of(first, second, np.repeat(np.arange(100), 6))
    assert together.lower(1.645) < alone.lower(1.645) < alone.upper(1.645) < together.upper(1.645)
    assert together.p_above(-0.13) > alone.p_above(-0.13)


def test_holm_is_statsmodels(rng):
    for _ in range(20):  # statsmodels collects garbage each time: 0.3 s in a large test run
        p_values = rng.random(rng.integers(1, 9)) ** 3
        assert holm(list(p_values)) == pytest.approx(
            list(multipletests(p_values, method="holm")[1])
        )
    assert holm([]) == []


def test_wilson_is_scipys():
    for correct, n in ((0, 10), (3, 10), (81, 263), (263, 263)):
        theirs = scipy.stats.binomtest(correct, n).proportion_ci(0.95, "wilson")
        assert wilson_interval(correct, n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_minimal_detectable_as_published():
    """The anchors' figures: 2.0 points of 1,000 items with 5 % flips, 0.5 of 14,042."""
    assert minimal_detectable(1000, 0.05) == pytest.approx(0.0198, abs=5e-4)
    assert minimal_detectable(14_042, 0.05) == pytest.approx(0.0053, abs=5e-4)


def test_minimal_detectable_is_found_with_its_power(rng):
    n, flips = 1000, 0.05
    delta = minimal_detectable(n, flips)
    lost = rng.binomial(n, (flips - delta) / 2, 4000)
    gained = rng.binomial(n, (flips + delta) / 2, 4000)
    z = (gained - lost) / np.sqrt(lost + gained)
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("kind", ["normal", "skewed", "few", "coarse"])
def test_bca_is_scipys(kind, rng):
    values = {
        "normal": rng.normal(1, 2, 200),
        "skewed": rng.lognormal(0, 1.5, 120),
        "few": rng.exponential(1, 12),
        "coarse": rng.integers(0, 2, 80).astype(float),
    }[kind]
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=30_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap.mean_interval(values, seed=2, n_resamples=30_000)
    spread = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03 * spread)


def test_bca_of_the_same_replicates_is_scipys_to_the_digit(rng):
    """scipy keeps its replicates: of those, the interval must be the same."""
    values = rng.gamma(0.7, size=60)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(1))
    jackknife = (values.sum() - values) / 59
    ours = bootstrap.bca_interval(values.mean(), theirs.bootstrap_distribution, jackknife)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), rel=1e-9)


def test_ratios_and_means_of_clusters_agree_with_each_other(rng):
    clusters = rng.integers(0, 40, 500)
    values = rng.normal(size=500) + 3
    sums = np.bincount(clusters, weights=values)
    sizes = np.bincount(clusters).astype(float)
    by_hand = bootstrap.ratio_interval(sums, sizes, seed=3)
    assert bootstrap.mean_interval(values, clusters, seed=3) == by_hand
    exponent = bootstrap.ratio_interval(sums, sizes, np.exp, seed=3)
    assert exponent == pytest.approx(tuple(np.exp(by_hand)), rel=1e-2)


def test_a_perplexity_beyond_floats_is_shown_at_its_cap():
    """-9999 is what the engine writes for minus infinity: a broken variant still has a report."""
    sizes = np.full(20, 40.0)
    found = ratio_estimate(9999.0 * sizes, sizes, is_log=True)
    assert found.value == found.low == found.high == math.exp(MAX_LOG)
    mixed = ratio_estimate(np.linspace(50, 9999, 20) * sizes, sizes, is_log=True)
    assert math.isfinite(mixed.low)
    assert math.isfinite(mixed.high)


def test_what_cannot_be_resampled_has_no_interval():
    assert bootstrap.mean_interval(np.array([1.0])) is None
    assert bootstrap.mean_interval(np.ones(5), np.zeros(5, int)) is None
    assert bootstrap.quantile_interval(np.ones(5), np.zeros(5, int), 0.99) is None
    assert bootstrap.mean_interval(np.full(9, 2.5)) == (2.5, 2.5)


def test_quantile_by_rank():
    values = np.arange(100.0)
    assert bootstrap.quantile_of(values, 0.99) == 98.0
    assert bootstrap.quantile_of(np.array([4.0]), 0.99) == 4.0
    low, high = bootstrap.quantile_interval(values, np.arange(100), 0.9)
    assert 75 <= low < 89 < high <= 97
    assert bootstrap.quantile_interval(values, np.arange(100), 0.9) == (low, high)  # seeded


@pytest.mark.parametrize("size", [40, 200])
def test_bca_covers_the_mean_of_clusters(size):
    """Coverage of a skewed mean, whole clusters drawn: nominal 95 %."""
    hits = []
    for seed in range(150):
        rng = np.random.default_rng((size, seed))
        clusters = np.repeat(np.arange(size), 3)
        values = np.repeat(rng.exponential(1, size), 3) + rng.exponential(0.5, 3 * size)
        low, high = bootstrap.mean_interval(values, clusters, seed=seed, n_resamples=1000)
        hits.append(low <= 1.5 <= high)
    assert 0.89 <= np.mean(hits) <= 0.99


# Type I errors. Standard error of a share of 0.05 in 20,000 runs: 0.0015.
N_RUNS = 20_000
WITHIN = 0.05 + 4 * 0.0015


@pytest.mark.parametrize(("n", "flips", "accuracy"), [(200, 0.06, 0.6), (1000, 0.03, 0.9)])
def test_mcnemar_errs_within_its_level(n, flips, accuracy):
    rng = np.random.default_rng(n)
    counts = rng.multinomial(n, [flips / 2, flips / 2, 1 - flips], N_RUNS)
    known = {pair: mcnemar_exact(*pair) for pair in {(int(b), int(c)) for b, c, _ in counts}}
    errors = np.mean([known[int(b), int(c)] <= 0.05 for b, c, _ in counts])
    assert errors <= WITHIN


@pytest.mark.parametrize(
    ("n", "accuracy", "flips"),
    [
        (200, 0.9, 0.02),
        (280, 0.98, 0.0098),
        (310, 0.9, 0.009),
        (500, 0.9, 0.0096),
        (1000, 0.5, 0.02),
        (1000, 0.95, 0.0096),
        (3000, 0.8, 0.05),
    ],
)
def test_noninferiority_errs_within_its_level(n, accuracy, flips):
    """The variant loses exactly the margin, 1 % of the accuracy: a pass is an error. The limit is
    set by the accuracy that was seen, as in a real evaluation."""
    rng = np.random.default_rng((n, int(1000 * accuracy)))
    lost = (flips + 0.01 * accuracy) / 2
    gained = lost - 0.01 * accuracy
    shares = [lost, gained, accuracy - lost, 1 - accuracy - gained]
    counts = rng.multinomial(n, shares, N_RUNS)
    passes = fails = 0
    for b, c, both, _ in counts.tolist():
        delta, limit = PairedDelta(Discordance(n, b, c), None), -0.01 * (b + both) / n
        passes += delta.p_above(limit) <= 0.05
        fails += delta.p_below(limit) <= 0.05
    assert passes / N_RUNS <= WITHIN
    assert fails / N_RUNS <= WITHIN  # nor is it called worse than it is


@pytest.mark.parametrize("n_clusters", [60, 200])
def test_noninferiority_of_clusters_errs_within_its_level(n_clusters):
    """Five items each, which flip all or none: the variant loses exactly the margin."""
    rng = np.random.default_rng(n_clusters)
    clusters, runs = np.repeat(np.arange(n_clusters), 5), 2000
    passes = fails = 0
    for _ in range(runs):
        first = rng.random(n_clusters) < 0.8
        draw = rng.random(n_clusters)
        second = np.where(first, draw >= 0.1 / 0.8, draw < 0.06 / 0.2)
        delta = PairedDelta.of(first[clusters], second[clusters], clusters)
        passes += delta.p_above(-0.04) <= 0.05
        fails += delta.p_below(-0.04) <= 0.05
    within = 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert passes / runs <= within
    assert fails / runs <= within


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 30, 47, 401])
def test_students_t_is_scipys(df):
    for t in (0.0, 0.3, 1.7, 4.0, 9.0):
        assert upper_tail(t, df) == pytest.approx(scipy.stats.t.sf(t, df), rel=1e-6, abs=1e-12)
    assert t_score(z_of(0.05), df) == pytest.approx(scipy.stats.t.ppf(0.95, df), rel=1e-6)
    assert t_score(-z_of(0.05), df) == -t_score(z_of(0.05), df)


@pytest.mark.parametrize("n_windows", [2, 3, 8, 48])
def test_perplexity_errs_within_its_level(n_windows):
    """The true log-ratio is the limit: either verdict is an error, at any number of windows."""
    logs = np.random.default_rng(n_windows).normal(0.05, 0.02, (4000, n_windows))
    known = [
        Log(float(mean), float(error), n_windows)
        for mean, error in zip(logs.mean(axis=1), scipy.stats.sem(logs, axis=1), strict=True)
    ]
    within = 0.05 + 4 * math.sqrt(0.05 * 0.95 / len(known))
    passes = np.mean([log.p_above(0.05) <= 0.05 for log in known])
    assert passes <= within
    assert np.mean([log.p_below(0.05) <= 0.05 for log in known]) <= within
    for log in known[:50]:  # the bound is where the test turns
        assert (log.upper(z_of(0.05)) <= 0.05) is (log.p_above(0.05) <= 0.05)


def test_all_four_variants_at_the_margin_err_together_within_the_level():
    """Family-wise, by Holm: one pass among four is one error."""
    rng = np.random.default_rng(4)
    n, margin, errors = 1000, 0.01, 0
    runs = 2000
    for _ in range(runs):
        base = rng.random(n) < 0.9
        limits = {}
        for name in "abcd":
            draw = rng.random(n)
            lost = base & (draw < 0.02 / 0.9)
            gained = ~base & (draw < 0.011 / 0.1)
            limits[name] = PairedDelta.of(base, (base & ~lost) | gained)
        found = judge_noninferiority(limits, 0.9, margin, 0.05)
        errors += any(each.verdict is Verdict.PASS for each in found.values())
    assert errors / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)


def test_verdicts_by_what_is_known():
    rng = np.random.default_rng(0)
    base = rng.random(5000) < 0.9
    same, little = base.copy(), base.copy()
    little[np.flatnonzero(base)[:40]] = False
    broken = base & (rng.random(5000) < 0.8)
    deltas = {
        name: PairedDelta.of(base, variant)
        for name, variant in (("same", same), ("little", little), ("broken", broken))
    }
    found = judge_noninferiority(deltas, float(base.mean()), 0.01, 0.05)
    assert [each.verdict for each in found.values()] == [
        Verdict.PASS,
        Verdict.INCONCLUSIVE,
        Verdict.FAIL,
    ]
    assert "ask more items" in found["little"].reason
    assert found["broken"].value < -0.1
    assert all(each.p_adjusted >= each.p_value for each in found.values())


def test_a_baseline_without_a_right_answer_decides_nothing():
    wrong = np.zeros(1000, bool)
    found = judge_noninferiority({"v": PairedDelta.of(wrong, wrong)}, 0.0, 0.01, 0.05)
    assert found["v"].verdict is Verdict.INCONCLUSIVE
    assert "nothing can be lost" in found["v"].reason


def test_with_no_margin_the_test_decides():
    base = np.ones(1000, bool)
    worse = np.arange(1000) >= 50
    deltas = {"same": PairedDelta.of(base, base), "worse": PairedDelta.of(base, worse)}
    found = judge_noninferiority(deltas, 1.0, 0.0, 0.05)
    assert found["same"].verdict is Verdict.INCONCLUSIVE
    assert "ask more items" in found["same"].reason
    assert found["worse"].verdict is Verdict.FAIL


def test_the_worst_verdict_counts_and_none_is_no_pass():
    order = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.ERROR]
    assert all(worst([milder, graver]) is graver for milder, graver in pairwise(order))
    assert worst([]) is Verdict.INCONCLUSIVE
