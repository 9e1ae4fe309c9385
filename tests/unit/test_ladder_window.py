"""Quantiles of the last seconds, against exact ones."""

import math
import random

import pytest

from serve_app.routing.window import WindowedQuantiles


def exact(values, p):
    return sorted(values)[math.ceil(p * len(values)) - 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_a_quantile_is_within_one_per_cent_of_the_exact_one(seed, p):
    rng = random.Random(seed)
    values = [rng.lognormvariate(-2, 1.5) for _ in range(3000)]
    window = WindowedQuantiles(10.0)
    for index, value in enumerate(values):
        window.add(value, index * 0.001)
    assert window.quantile(p, 3.0) == pytest.approx(exact(values, p), rel=0.01)


def test_only_the_last_seconds_count():
    window = WindowedQuantiles(10.0, n_slots=20)
    for second in range(100):
        window.add(1.0 if second < 80 else 5.0, float(second))
    assert window.quantile(0.01, 99.0) == pytest.approx(5.0, rel=0.01)
    assert window.n == 10
    assert window.quantile(0.5, 108.4) == pytest.approx(5.0, rel=0.01)  # one is left
    assert window.quantile(0.5, 109.5) is None


def test_nothing_seen_is_none_and_not_zero():
    window = WindowedQuantiles(10.0)
    assert window.quantile(0.95, 0.0) is None
    window.add(1.0, 5.0)
    assert window.quantile(0.95, 5_000.0) is None


def test_memory_does_not_grow_with_the_rate_or_with_absurd_values():
    window, rng = WindowedQuantiles(10.0, n_slots=4), random.Random(1)
    for index in range(50_000):
        value = rng.choice([0.0, -1.0, 1e-30, 1e30, rng.uniform(0.01, 100)])
        window.add(value, index * 0.0001)
    buckets = sum(len(slot) for slot in window._slots) + len(window._total)
    assert buckets < 5 * 1400  # 1e-6 to 1e6 in steps of 2 % are 1,396
    assert window.n == 50_000
    assert window.quantile(1.0, 5.0) == pytest.approx(1e6, rel=0.01)


def test_a_clock_that_stands_still_or_jumps_is_no_matter():
    window = WindowedQuantiles(1.0)
    for _ in range(10):
        window.add(2.0, 7.0)
    assert window.n == 10
    window.add(3.0, 1e9)
    assert (window.n, window.quantile(0.5, 1e9)) == (1, pytest.approx(3.0, rel=0.01))
