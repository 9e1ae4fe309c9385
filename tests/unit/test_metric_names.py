"""Names, labels and buckets: one home, a table that is true, and few values of each label."""

import itertools
import re

import pytest

from serve_app.domain.traffic import RouteReason
from serve_app.routing.breaker import BreakerState
from serve_app.telemetry import names
from serve_app.telemetry.names import HistogramName
from serve_app.telemetry.table import README, with_table

METRICS = names.every_metric()


def test_the_table_in_the_readme_is_that_of_the_code():
    text = README.read_text("utf-8")
    assert text == with_table(text), "write it anew: python -m serve_app.telemetry.table"
    assert len(METRICS) == text.count("| `quantile_")


def test_names_are_those_of_prometheus_and_ours():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"quantile_[a-z]+(_[a-z0-9]+)+", metric.name)
        assert metric.description.endswith((".", "`."))


def test_every_label_has_a_bound():
    used = {label for metric in METRICS for label in metric.labels}
    assert used == names.BOUNDED_BY.keys()
    reserved = {"application", "deployment", "replica", "le", "quantile", "job", "instance"}
    assert not used & reserved


@pytest.mark.parametrize("metric", [m for m in METRICS if isinstance(m, HistogramName)])
def test_buckets_rise_and_are_not_more_than_a_series_is_worth(metric):
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert len(metric.buckets) <= 64


@pytest.mark.parametrize("buckets", [names.TTFT_BUCKETS_S, names.TPOT_BUCKETS_S])
def test_a_p99_read_off_the_buckets_is_right_within_a_tenth(buckets):
    """`histogram_quantile` interpolates within a bucket: the middle is the most it is off from."""
    ratios = [b / a for a, b in itertools.pairwise(buckets)]
    assert max((ratio - 1) / 2 for ratio in ratios) < 0.11


def test_the_objective_of_the_alerts_is_a_bucket():
    assert 1.0 in names.TTFT_BUCKETS_S


def test_states_that_become_numbers_are_those_of_the_router():
    from serve_app.telemetry.metrics import _BREAKER_LEVELS

    assert _BREAKER_LEVELS.keys() == {str(state) for state in BreakerState}
    assert {str(reason) for reason in RouteReason} >= {"pinned", "sticky", "weighted", "fallback"}
