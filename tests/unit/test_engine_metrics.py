"""An engine's own metrics, copied to Ray's."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve_app.domain.errors import EngineError
from serve_app.engines.fake import create_app
from serve_app.engines.samples import Sample, app_samples, family_samples, page_samples
from serve_app.telemetry.engine_metrics import AT_ONCE, EngineMetrics, keep_copying
from tests.fakes.engine import StubEngine
from tests.fakes.relay import card_of


class Gauges:
    """Ray's gauges: what was made, and the last value of each series."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[str, ...]]] = []
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.set_once = asyncio.Event()

    def __call__(self, name, labels):
        self.made.append((name, labels))
        gauges = self

        class One:
            def set(self, value, tags):
                assert tuple(sorted(tags)) == labels
                gauges.values[name, tuple(sorted(tags.items()))] = value
                gauges.set_once.set()

        return One()


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_running", "", ["engine"], registry=registry).labels("0").set(3)
    Counter("vllm:prompt_tokens", "", ["engine"], registry=registry).labels("0").inc(70)
    name = "vllm:time_to_first_token_seconds"
    ttft = Histogram(name, "", ["engine"], registry=registry, buckets=(0.1, 1))
    ttft.labels("0").observe(0.5)
    return registry


async def test_every_series_keeps_its_value_and_says_whose_it_is(registry):
    gauges = Gauges()
    metrics = EngineMetrics(card_of("awq", method="awq", bits=4), gauges)
    await metrics.copy(family_samples(registry.collect()))
    own = (("bits", "4"), ("engine", "0"))
    mine = (("method", "awq"), ("variant", "awq"))
    ttft = "vllm_time_to_first_token_seconds"
    assert gauges.values == {
        ("vllm_num_requests_running", own + mine): 3,
        ("vllm_prompt_tokens_total", own + mine): 70,
        (f"{ttft}_bucket", (*own, ("le", "0.1"), *mine)): 0,
        (f"{ttft}_bucket", (*own, ("le", "1.0"), *mine)): 1,
        (f"{ttft}_bucket", (*own, ("le", "+Inf"), *mine)): 1,
        (f"{ttft}_count", own + mine): 1,
        (f"{ttft}_sum", own + mine): 0.5,
    }
    await metrics.copy(family_samples(registry.collect()))
    assert len(gauges.made) == 5, "a gauge was made anew"


def test_a_page_says_the_same_as_the_registry(registry):
    page = generate_latest(registry).decode()
    assert page_samples(page) == list(family_samples(registry.collect()))


async def test_a_fake_engine_tells_its_own_and_an_application_without_a_page_nothing():
    found = {sample.name: sample for sample in await app_samples(create_app(["m@a", "m"]))}
    assert found["vllm:num_requests_running"].value == 0
    assert found["fake:requests_total"].labels["model_name"] == "m@a"

    async def nothing(scope, receive, send):
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"no such page"})

    assert await app_samples(nothing) == []


async def test_requests_have_their_turn_between_many_series():
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    metrics = EngineMetrics(card_of("a"), Gauges())
    await metrics.copy(Sample(f"s{i}", {}, 1.0) for i in range(10 * AT_ONCE))
    task.cancel()
    assert turns >= 10


async def test_an_engine_that_cannot_tell_is_asked_again(caplog):
    class Shy(StubEngine):
        asked = 0

        async def samples(self):
            self.asked += 1
            if self.asked < 3:
                raise EngineError("not now")
            return [Sample("up", {}, 1.0)]

    gauges, engine = Gauges(), Shy(None)
    task = asyncio.create_task(keep_copying(engine, EngineMetrics(card_of("a"), gauges), 0.0))
    async with asyncio.timeout(5):
        await gauges.set_once.wait()
    task.cancel()
    assert len([r for r in caplog.records if "could not be read" in r.message]) == 1
