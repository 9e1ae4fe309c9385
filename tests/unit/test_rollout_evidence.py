"""The e-processes: fair where nothing is wrong, whenever one looks; sharp where something is."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from serve_app.rollout.betting import STAKES, excess, log_growth, log_mean, matched
from serve_app.rollout.dependence import PRIOR, Spread, design_effect
from serve_app.rollout.msprt import TYPICAL_EFFECT, log_above, log_below, log_msprt
from serve_app.rollout.slo import log_breached, log_kept

ALPHA = 0.05


def log_e(scores) -> float:
    return float(log_mean(log_growth(np.asarray(scores, float))))


def log_e_one_by_one(scores) -> float:
    """With a look after every unit."""
    return float(log_mean(sum(log_growth(np.array([score])) for score in scores)))


def test_a_bet_on_a_fair_coin_gains_nothing_on_average_over_all_that_can_happen():
    every_sequence = itertools.product((-1.0, 1.0), repeat=10)
    mean = np.mean([math.exp(log_e_one_by_one(each)) for each in every_sequence])
    assert mean == pytest.approx(1.0)


def test_an_unfair_coin_in_the_candidates_favour_gains_less():
    every_sequence = list(itertools.product((-1.0, 1.0), repeat=8))
    weights = [0.4 ** each.count(1.0) * 0.6 ** each.count(-1.0) for each in every_sequence]
    mean = sum(
        w * math.exp(log_e_one_by_one(each))
        for w, each in zip(weights, every_sequence, strict=True)
    )
    assert mean < 1


def test_each_bettor_has_the_likelihood_ratio_of_the_sign_test():
    n_worse, n_better = 5, 4
    grown = log_growth(np.array([1.0] * n_worse + [-1.0] * n_better + [0.0] * 50))
    shares = (1 + STAKES) / 2
    ratio = n_worse * np.log(shares / 0.5) + n_better * np.log((1 - shares) / 0.5)
    assert grown == pytest.approx(ratio)


def test_dependent_units_raised_to_their_number_stay_fair():
    # each outcome comes twice: without the exponent that is evidence made of nothing
    pairs = [[score] * 2 for score in (-1.0, 1.0)]
    for dependence, is_fair in ((2.0, True), (1.0, False)):
        grown = [log_mean(log_growth(np.array(each), dependence)) for each in pairs]
        assert (np.mean(np.exp(grown)) <= 1) == is_fair


def test_one_look_does_not_decide_whatever_it_shows():
    grown = log_growth(np.ones(1000))
    assert grown.max() == pytest.approx(math.log(4))


def test_scores_stay_where_no_bettor_can_lose_more_than_it_has():
    shares = np.array([0.0, 0.3, 1.0])
    for candidate, baseline in itertools.product(shares, shares):
        for shift in (-0.5, 0.0, 0.3):
            score = excess(np.array([candidate]), np.array([baseline]), shift)
            assert -1 <= score[0] <= 1


@pytest.mark.parametrize(
    ("candidate", "baseline"), [((3, 10), (20, 95)), ((30, 200), (1, 7)), ((0, 5), (0, 5))]
)
def test_matching_uses_every_request_of_the_smaller_arm_and_invents_none(candidate, baseline):
    ours, theirs = matched(candidate, baseline, np.random.default_rng(1))
    n_units = min(candidate[1], baseline[1])
    assert len(ours) == len(theirs) == n_units
    for found, (k, n) in ((ours, candidate), (theirs, baseline)):
        size = n // n_units
        assert (found * size == np.round(found * size)).all()
        assert k - (n - size * n_units) <= round(float(found.sum()) * size) <= k


def test_matching_is_fair_to_arms_of_unequal_size():
    # 2 % in both, one arm 20 times the other: the mean of what bettors have must not grow
    rng = np.random.default_rng(5)
    have = []
    for _ in range(3000):
        k_small, k_large = rng.binomial(40, 0.02), rng.binomial(800, 0.02)
        ours, theirs = matched((k_small, 40), (k_large, 800), rng)
        have.append(math.exp(log_e(excess(ours, theirs, 0.0))))
    assert np.mean(have) == pytest.approx(1.0, abs=4 * np.std(have) / math.sqrt(len(have)))


def test_one_arm_without_requests_is_no_evidence():
    ours, theirs = matched((0, 0), (3, 50), np.random.default_rng(1))
    assert len(ours) == len(theirs) == 0


@pytest.mark.parametrize("p0", [0.01, 0.2])
def test_a_limit_that_is_just_kept_gives_an_e_value_of_mean_one(p0):
    n = 60
    weights = stats.binom.pmf(np.arange(n + 1), n, p0)
    for log_value in (log_breached, log_kept):
        mean = sum(w * math.exp(log_value(k, n, p0)) for k, w in enumerate(weights))
        assert mean == pytest.approx(1.0)


def test_the_sum_over_nodes_is_the_integral_of_the_beta_mixture():
    p0, k, n = 0.05, 9, 80
    prior = stats.beta(0.5, 1)

    def integrand(p: float) -> float:
        log_ratio = k * math.log(p / p0) + (n - k) * math.log((1 - p) / (1 - p0))
        return math.exp(log_ratio) * prior.pdf(p) / prior.sf(p0)

    exact = integrate.quad(integrand, p0, 1 - 1e-12, limit=200)[0]
    assert math.exp(log_breached(k, n, p0)) == pytest.approx(exact, rel=0.02)


def test_a_broken_limit_is_found_and_a_kept_one_is_shown():
    assert log_breached(30, 1000, 0.01) > math.log(1000)
    assert log_breached(8, 1000, 0.01) < 0
    assert log_kept(0, 500, 0.01) > math.log(20) > log_kept(5, 500, 0.01)


def test_the_msprt_is_the_mixture_that_it_says_it_is():
    d = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.6])
    c2, n = 1 / TYPICAL_EFFECT**2, len(d)

    def likelihood(effect: float) -> float:
        """Over all scales, with the right Haar prior."""

        def integrand(log_s: float) -> float:
            s = math.exp(log_s)
            return math.exp(-n * log_s - ((d / s - effect) ** 2).sum() / 2)

        return integrate.quad(integrand, -6, 6, limit=400)[0]

    prior = stats.norm(0, 1 / math.sqrt(c2))
    mixture = integrate.quad(lambda e: likelihood(e) * prior.pdf(e), -3, 3)[0]
    found = math.exp(log_msprt(n, d.sum(), (d**2).sum()))
    assert found == pytest.approx(mixture / likelihood(0.0), rel=1e-4)


def test_the_msprt_errs_at_most_alpha_of_the_time_with_a_look_after_every_value():
    rng = np.random.default_rng(3)
    d = rng.normal(0.0, 2.5, (500, 200))
    crossed = _ever_above(d)
    assert crossed.mean() <= ALPHA


def test_heavy_tailed_latencies_have_logs_that_the_msprt_can_take():
    # Pareto of index 1.5 has no variance; its log is exponential
    rng = np.random.default_rng(4)
    d = rng.exponential(1 / 1.5, (500, 200)) - rng.exponential(1 / 1.5, (500, 200))
    assert _ever_above(d).mean() <= ALPHA


def _ever_above(d) -> np.ndarray:
    n = np.arange(1, d.shape[1] + 1)
    totals, squares = d.cumsum(axis=1), (d**2).cumsum(axis=1)
    found = np.zeros(len(d), bool)
    for i in range(len(d)):
        rows = zip(n, totals[i], squares[i], strict=True)
        found[i] = max(log_above(*row, 0.0) for row in rows) >= -math.log(ALPHA)
    return found


def test_slower_is_not_faster():
    rng = np.random.default_rng(2)
    d = rng.normal(0.2, 0.5, 400)
    sums = len(d), d.sum(), (d**2).sum()
    assert log_above(*sums, 0.0) > math.log(1e6)
    assert log_below(*sums, 0.0) < 0
    assert log_below(*sums, 0.4) > math.log(1e6)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_values_say_nothing(n):
    assert log_above(n, 5.0 * n, 25.0 * n, 0.0) == 0.0


def test_values_that_are_all_alike_say_nothing():
    # their spread is 0, so that any difference would be infinitely many standard deviations
    assert log_above(50, 50 * 0.2, 50 * 0.04, 0.0) == 0.0


def test_the_design_effect_of_independent_requests_is_one_and_of_stalls_their_length():
    rng = np.random.default_rng(8)

    def measured(length: int) -> float:
        values = np.repeat(rng.random(400_000 // length) < 0.05, length).astype(float)
        blocks = values.reshape(-1, 500)
        spread = Spread().after(blocks.mean(axis=1), blocks.var(axis=1, ddof=1) / 500)
        return design_effect([spread])

    assert measured(1) == pytest.approx(1.2, abs=0.35)
    assert measured(20) == pytest.approx(20, rel=0.35)


def test_a_drift_of_the_load_is_not_dependence():
    rng = np.random.default_rng(8)
    load = 0.2 + 0.15 * np.sin(np.linspace(0, 6, 40_000))
    blocks = (rng.random(40_000) < load).astype(float).reshape(-1, 500)
    spread = Spread().after(blocks.mean(axis=1), blocks.var(axis=1, ddof=1) / 500)
    assert design_effect([spread]) < 1.6


def test_before_anything_is_measured_some_dependence_is_assumed():
    assert design_effect([]) == PRIOR
