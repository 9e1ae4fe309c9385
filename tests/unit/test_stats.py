import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtests.analyse.stats import effective_size, interval_ranks, nearest_rank, quantile

finite = st.floats(min_value=0, max_value=1e6, allow_nan=False)
percentile = st.sampled_from([0.5, 0.95, 0.99, 0.999])


@given(st.lists(finite, min_size=1, max_size=400), percentile)
def test_nearest_rank_is_numpys_inverted_cdf(samples, p):
    ordered = sorted(samples)
    assert nearest_rank(ordered, p) == np.percentile(samples, p * 100, method="inverted_cdf")


@given(st.lists(finite, min_size=20, max_size=400), percentile)
def test_a_percentile_is_a_sample_inside_its_interval(samples, p):
    q = quantile(samples, p)
    if q.value is None:
        assert q.reason == f"need n >= {round(1 / (1 - p))}, have {len(samples)}"
        return
    assert q.value in samples
    assert q.low is None or q.low <= q.value
    assert q.high is None or q.high >= q.value


@pytest.mark.parametrize(("p", "need"), [(0.5, 1), (0.95, 20), (0.99, 100), (0.999, 1000)])
def test_too_small_a_sample_gives_none_and_says_why(p, need):
    assert quantile([1.0] * need, p).value == 1.0
    short = quantile([1.0] * (need - 1), p)
    assert short.value is None and short.low is None
    assert short.reason == f"need n >= {need}, have {need - 1}"


@given(st.integers(0, 30))
def test_failures_are_infinite_samples(n_failures):
    q = quantile([1.0] * 970, 0.99, n_failures)
    n = 970 + n_failures
    assert math.isinf(q.value) == (n_failures > n - math.ceil(0.99 * n))
    assert (q.reason is not None) == math.isinf(q.value)
    assert q.n == n


def test_all_failed():
    q = quantile([], 0.5, 3)
    assert math.isinf(q.value) and q.reason == "infinite: 100.0% of the requests failed"
    assert quantile([], 0.5).value is None


@pytest.mark.parametrize(("p", "smallest"), [(0.95, 72), (0.99, 368), (0.999, 3688)])
def test_a_two_sided_interval_exists_from_the_known_sample_size_on(p, smallest):
    # Hahn & Meeker; GuideLLM PR 1163 gives the same three numbers.
    assert None not in interval_ranks(smallest, p)
    assert None in interval_ranks(smallest - 1, p)


@given(st.integers(1, 3000), percentile)
def test_interval_ranks_cover_with_the_stated_confidence(n, p):
    lower, upper = interval_ranks(n, p)
    below = scipy_stats.binom(n, p)
    if lower is not None:
        assert below.sf(lower - 1) >= 0.975 - 1e-9
    if upper is not None:
        assert below.cdf(upper - 1) >= 0.975 - 1e-9


def test_the_interval_covers_the_true_percentile_as_often_as_it_says():
    rng = np.random.default_rng(5)
    true = scipy_stats.expon.ppf(0.95)
    hits = 0
    for _ in range(400):
        q = quantile(list(rng.exponential(size=300)), 0.95)
        hits += q.low <= true <= q.high
    assert hits / 400 > 0.92


def test_dependent_samples_count_for_less():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=4000)
    chain = [0.0]
    for each in noise:
        chain.append(0.5 * chain[-1] + each)
    assert effective_size(list(noise)) > 3600
    assert effective_size(chain) == pytest.approx(4000 / 3, rel=0.15)
    assert effective_size([1.0] * 50) == 50
    assert effective_size([]) == 0
    free, bound = quantile(sorted(noise)[::2], 0.95), quantile(list(noise), 0.95)
    assert free.high is None  # sorted: next to no independent samples
    assert bound.high - bound.low < 0.3
