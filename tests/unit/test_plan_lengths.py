import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadtests.campaign.workload import Lengths, TrafficClass
from loadtests.plan.lengths import Mixture, draw_lengths

WIDE = Lengths(median=20_000, sigma=0.7, min=1, max=10_000_000)


def traffic(name="chat", weight=1.0, input_tokens=WIDE, output_tokens=WIDE, correlation=0.0):
    return TrafficClass(
        name=name,
        weight=weight,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        correlation=correlation,
    )


def draw(of, n=4000, seed=1):
    rng = random.Random(seed)
    return zip(*(draw_lengths(of, rng) for _ in range(n)), strict=True)


def test_lengths_are_lognormal():
    inputs, outputs = draw(traffic(output_tokens=Lengths(median=5000, sigma=0.3, max=10**6)))
    assert stats.kstest(inputs, "lognorm", args=(0.7, 0, 20_000)).pvalue > 0.01
    assert stats.kstest(outputs, "lognorm", args=(0.3, 0, 5000)).pvalue > 0.01


@pytest.mark.parametrize("rho", [-1.0, -0.6, 0.0, 0.4, 1.0])
def test_logarithms_correlate_as_asked_and_keep_their_own_distributions(rho):
    inputs, outputs = draw(traffic(correlation=rho))
    found = stats.pearsonr([math.log(n) for n in inputs], [math.log(n) for n in outputs])
    assert found.statistic == pytest.approx(rho, abs=0.04)
    assert stats.kstest(outputs, "lognorm", args=(0.7, 0, 20_000)).pvalue > 0.01


@given(st.floats(0, 1000), st.integers(1, 50), st.integers(0, 50), st.integers(0, 50))
def test_lengths_stay_in_range_however_wide(sigma, low, to_median, to_max):
    lengths = Lengths(median=low + to_median, sigma=sigma, min=low, max=low + to_median + to_max)
    rng = random.Random(0)
    for _ in range(20):
        for n in draw_lengths(traffic(input_tokens=lengths, output_tokens=lengths), rng):
            assert isinstance(n, int)
            assert lengths.min <= n <= lengths.max


def test_without_spread_every_length_is_the_median():
    fixed = Lengths(median=7, sigma=0, max=9)
    assert set(draw(traffic(input_tokens=fixed, output_tokens=fixed), 50)) == {(7,) * 50}


def test_classes_are_drawn_by_weight():
    mixture = Mixture([traffic("a", 6), traffic("b", 3), traffic("c", 1)])
    rng = random.Random(2)
    names = [mixture.draw(rng).name for _ in range(5000)]
    observed = [names.count(name) for name in "abc"]
    assert stats.chisquare(observed, [3000, 1500, 500]).pvalue > 0.01
