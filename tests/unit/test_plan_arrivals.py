import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from loadtests.campaign import LoadStage
from loadtests.plan.arrivals import arrivals, constant, gamma, poisson, ramp

rates = st.floats(0.1, 200)
lengths = st.floats(0.1, 50)
shapes = st.floats(0.001, 50)
seeds = st.integers(0, 2**32)


def stage(**fields: object):
    return TypeAdapter(LoadStage).validate_python({"name": "s", "duration_s": 1.0} | fields)


def assert_in_order_inside(times, length_s, n):
    assert len(times) == n
    assert list(times) == sorted(times)
    assert all(0 <= time < length_s for time in times)


@given(rates, lengths)
def test_constant_arrivals_are_as_many_as_asked_and_inside(rate, length):
    assert_in_order_inside(constant(rate, length), length, round(rate * length))


@given(rates, lengths, seeds)
def test_poisson_arrivals_are_as_many_as_asked_and_inside(rate, length, seed):
    times = poisson(rate, length, random.Random(seed))
    assert_in_order_inside(times, length, round(rate * length))


@given(rates, lengths, shapes, seeds)
def test_gamma_arrivals_are_as_many_as_asked_and_inside(rate, length, shape, seed):
    times = gamma(rate, length, shape, random.Random(seed))
    assert_in_order_inside(times, length, round(rate * length))


@given(st.floats(0, 200), st.floats(0, 200), lengths, seeds)
def test_ramp_arrivals_are_as_many_as_asked_and_inside(start, end, length, seed):
    times = ramp(start, end, length, random.Random(seed))
    assert_in_order_inside(times, length, round((start + end) / 2 * length))


def test_random_numbers_at_their_limits_stay_inside():
    class Always(random.Random):
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    for value in (0.0, 1 - 2**-53):
        for times in (
            poisson(1, 1e-3 + 1, Always(value)),
            ramp(0, 2, 1.1, Always(value)),
            ramp(2, 0, 1.1, Always(value)),
        ):
            assert_in_order_inside(times, 1.1, 1)


def test_constant_arrivals_are_even():
    assert constant(4, 1) == (0, 0.25, 0.5, 0.75)
    assert constant(0.4, 1) == ()


def test_poisson_gaps_are_exponential():
    times = poisson(50, 100, random.Random(9))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01


def test_poisson_counts_in_parts_of_the_window_are_binomial():
    first_halves = [sum(t < 5 for t in poisson(2, 10, random.Random(seed))) for seed in range(400)]
    observed = [first_halves.count(k) for k in range(5, 16)]
    expected = [stats.binom.pmf(k, 20, 0.5) for k in range(5, 16)]
    observed += [400 - sum(observed)]
    expected += [1 - sum(expected)]
    assert stats.chisquare(observed, [400 * p for p in expected]).pvalue > 0.01


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_their_shape(shape):
    times = gamma(50, 200, shape, random.Random(4))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    fits = stats.kstest(gaps, "gamma", args=(shape, 0, 1 / (50 * shape))).pvalue
    assert fits > 0.01
    others = {0.25, 1.0, 4.0} - {shape}
    for other in others:
        assert stats.kstest(gaps, "gamma", args=(other, 0, 1 / (50 * other))).pvalue < 1e-6


def test_gamma_of_shape_1_is_poisson_given_its_count():
    """The first of n uniform times is Beta(1, n), the last Beta(n, 1)."""
    n = 10
    rng = random.Random(0)
    draws = [gamma(n, 1, 1.0, rng) for _ in range(10_000)]
    assert stats.kstest([times[0] for times in draws], "beta", args=(1, n)).pvalue > 0.01
    assert stats.kstest([times[-1] for times in draws], "beta", args=(n, 1)).pvalue > 0.01


@pytest.mark.parametrize(("start", "end"), [(0, 40), (40, 0), (10, 30)])
def test_ramp_times_follow_the_line(start, end):
    times = ramp(start, end, 100, random.Random(6))
    total = (start + end) / 2 * 100

    def cumulative(t):
        return (start * t + (end - start) * t * t / 200) / total

    assert stats.kstest(times, cumulative).pvalue > 0.01
    assert stats.kstest(times, "uniform", args=(0, 100)).pvalue < 1e-6


def test_a_ramp_is_level_before_and_after():
    it = stage(kind="ramp", from_per_s=3, to_per_s=7)
    rng = random.Random(0)
    assert len(arrivals(it, "warmup", 10, rng)) == 30
    assert len(arrivals(it, "measured", 10, rng)) == 50
    assert len(arrivals(it, "cooldown", 10, rng)) == 70


def test_every_drawn_kind_has_its_arrivals():
    for kind, more in (("constant", {}), ("poisson", {}), ("gamma", {"burstiness": 0.5})):
        it = stage(kind=kind, rate_per_s=5, **more)
        expected = {
            "constant": constant(5, 2),
            "poisson": poisson(5, 2, random.Random(1)),
            "gamma": gamma(5, 2, 0.5, random.Random(1)),
        }[kind]
        for phase in ("warmup", "measured", "cooldown"):
            assert arrivals(it, phase, 2, random.Random(1)) == expected


def test_what_is_not_drawn_is_refused():
    for it in (
        stage(kind="concurrency", concurrency=2),
        stage(kind="trace", format="azure", path="x"),
    ):
        with pytest.raises(TypeError, match="not drawn"):
            arrivals(it, "measured", 1, random.Random(0))
