"""What a ladder exports: one value per rung, and every move once."""

import pytest

from serve_app.routing.ladder import Gate, LadderState
from serve_app.telemetry import metrics


class Series:
    """Implements what is used of `ray.serve.metrics`, and refuses other labels than declared."""

    def __init__(self, metric):
        self.labels, self.values = set(metric.labels), {}

    def set(self, value, tags):
        assert set(tags) == self.labels
        self.values[tuple(tags.values())] = value

    def inc(self, tags):
        self.set(self.values.get(tuple(tags.values()), 0) + 1, tags)


@pytest.fixture
def series(monkeypatch):
    made = {}

    def make(metric):
        made[metric.name] = Series(metric)
        return made[metric.name]

    monkeypatch.setattr(metrics, "_gauge", make)
    monkeypatch.setattr(metrics, "_counter", make)
    return made


def test_shares_limits_rung_and_moves_are_exported(series):
    told = metrics.ServeLadderMetrics("m")
    start = LadderState((Gate("bf16"), Gate("int8")), "gptq")
    down = LadderState((Gate("bf16", 6000, limit=8), Gate("int8", 5000)), "gptq")
    told.moved(start, start)
    assert series["quantile_ladder_moves_total"].values == {}
    assert series["quantile_ladder_in_flight_limit"].values == {}  # unknown is no sample
    told.moved(start, down)
    told.moved(down, start)
    told.moved(start, down)
    assert series["quantile_ladder_share_bp"].values == {
        ("m", "bf16"): 6000,
        ("m", "int8"): 2000,
        ("m", "gptq"): 2000,
    }
    assert series["quantile_ladder_in_flight_limit"].values == {("m", "bf16"): 8}
    assert series["quantile_ladder_rung"].values == {("m",): 2}
    assert series["quantile_ladder_moves_total"].values == {
        ("m", "bf16", "down"): 2,
        ("m", "int8", "down"): 2,
        ("m", "bf16", "up"): 1,
        ("m", "int8", "up"): 1,
    }
