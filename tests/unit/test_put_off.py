"""Metrics that are recorded later: all, in order, a few at a time, whatever one of them does."""

import asyncio

import pytest

from serve_app.telemetry import put_off
from serve_app.telemetry.put_off import PutOff


class Series:
    """Implements what is used of a metric; negative values are refused."""

    def __init__(self) -> None:
        self.values: list[tuple[float, dict[str, str]]] = []

    def observe(self, value: float, tags: dict[str, str]) -> None:
        if value < 0:
            raise ValueError("negative")
        self.values.append((value, dict(tags)))


@pytest.fixture
def series():
    return Series()


async def test_they_come_in_order_and_later(series):
    later = PutOff(0.01)
    for n in range(3):
        later.add(series.observe, n, {"variant": "a"})
    assert series.values == []
    await asyncio.sleep(0.05)
    assert series.values == [(n, {"variant": "a"}) for n in range(3)]
    later.add(series.observe, 9)
    await asyncio.sleep(0.05)
    assert series.values[-1] == (9, {})


async def test_others_have_their_turn_in_between(series, monkeypatch):
    monkeypatch.setattr(put_off, "AT_ONCE", 2)
    later = PutOff(0.0)
    for n in range(5):
        later.add(series.observe, n)
    seen = []
    for _ in range(6):
        await asyncio.sleep(0)
        seen.append(len(series.values))
    assert seen[-1] == 5 and {2, 4} <= set(seen)


async def test_one_that_comes_while_some_wait_is_not_forgotten(series, monkeypatch):
    monkeypatch.setattr(put_off, "AT_ONCE", 1)
    later = PutOff(0.0)

    def and_another(value: float, tags: dict[str, str]) -> None:
        later.add(series.observe, value + 1)

    for n in range(3):
        later.add(and_another, n)
    await asyncio.sleep(0.05)
    assert [value for value, _ in series.values] == [1, 2, 3]


async def test_what_is_refused_is_logged_once_and_holds_nothing_up(series, caplog):
    later = PutOff(0.0)
    for value in (-1, 1, -2, 2):
        later.add(series.observe, value)
    await asyncio.sleep(0.02)
    assert [value for value, _ in series.values] == [1, 2]
    assert len([each for each in caplog.records if "a metric was refused" in each.message]) == 1


async def test_all_can_be_had_at_once(series):
    later = PutOff(60.0)
    for n in range(200):
        later.add(series.observe, n)
    later.flush()
    assert len(series.values) == 200
    later.add(series.observe, 0)
    assert len(series.values) == 200
    later.flush()
