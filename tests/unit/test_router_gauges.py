"""What a router replica tells again and again, as Ray forgets a gauge that is not set."""

import asyncio
from collections import Counter

from serve_app.config.parse import parse
from serve_app.config.schema import RouterUserConfig
from serve_app.routing.breaker import BreakerState
from serve_app.serving import router_gauges
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.router_gauges import Repeating, tell
from serve_app.serving.served_alias import Flight, ServedAlias
from tests.fakes.metrics import RecordingMetrics, recording_meters
from tests.fakes.relay import FakeRelay, FakeSleepers

SPLIT = {"a": 7000, "b": 3000, "c": 0}


async def test_variants_split_and_ladder_are_told_and_what_is_gone_is_not():
    relay, meters = FakeRelay(), recording_meters()
    directory = VariantDirectory(relay, 60.0, FakeSleepers())
    ladder = {"rungs": ["a", "b"], "max_in_flight": {"a": 4}}
    config = parse(RouterUserConfig, {"split": SPLIT, "ladder": ladder}, where="test")
    rules = config.to_aliases("m")["m"]
    alias = ServedAlias("m", rules, relay, meters, lambda: 0.0)
    alias.configure(rules, config)
    directory._ready, directory._asleep = {"a": True}, frozenset({"c"})
    metrics: RecordingMetrics = meters.router
    breakers = {"a": BreakerState.HALF_OPEN}
    tell(metrics, ["a", "b", "c"], directory, {"a": 3, "b": 0}, breakers, {"m": alias})
    assert metrics.standing == {
        "a": (1.0, 3, "half_open"),
        "b": (0.0, 0, None),
        "c": (0.5, 0, None),
    }
    assert metrics.splits == {"m": SPLIT}
    assert alias.ladder._metrics.standing.rung == "a"
    metrics.standing.clear()
    tell(metrics, ["b"], directory, {"a": 3}, {}, {})
    assert metrics.standing.keys() == {"b"}
    alias.close()


def test_a_request_is_in_flight_at_one_variant_at_a_time():
    counts: Counter[str] = Counter()
    flight = Flight((), counts)
    flight.to("a")
    flight.to("a")
    assert counts == {"a": 1}
    flight.to("b")  # it fell back
    assert counts == {"a": 0, "b": 1}
    flight.over(None)
    flight.over(None)
    assert counts == {"a": 0, "b": 0}
    Flight((), counts).over(None)  # refused before it was sent anywhere
    assert counts.total() == 0


async def test_it_goes_on_after_a_failure_and_ends(caplog):
    told = asyncio.Event()
    n_told = 0

    def stands() -> None:
        nonlocal n_told
        n_told += 1
        if n_told == 1:
            raise RuntimeError("not now")
        told.set()

    repeating = Repeating(stands, 0.001)
    repeating.start()
    repeating.start()
    async with asyncio.timeout(5):
        await told.wait()
    assert len([r for r in caplog.records if "could not be told" in r.message]) == 1
    repeating.close()
    await asyncio.sleep(0)
    n_before = n_told
    await asyncio.sleep(0.01)
    assert n_told == n_before
    assert router_gauges.EVERY_S < 10, "Ray reports every ten seconds"
