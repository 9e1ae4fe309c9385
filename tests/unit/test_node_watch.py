"""Plan against actual while an engine runs: gauges always, a warning once per episode."""

import asyncio
import logging

import pytest

from serve_app.domain.errors import EngineError
from serve_app.node.gate import StartNeed
from serve_app.node.watch import EVERY_S, MemoryWatch
from tests.fakes.devices import FakeDevice

PLAN = 1000


class Recorder:
    def __init__(self) -> None:
        self.values: list[tuple] = []
        self.totals: dict[str, int] = {}

    def planned(self, device: str, n_bytes: int) -> None:
        self.values.append(("planned", device, n_bytes))

    def total(self, device: str, n_bytes: int) -> None:
        self.totals[device] = n_bytes

    def held(self, device: str, n_bytes: int, source: str) -> None:
        self.values.append(("held", device, n_bytes, source))


@pytest.fixture
def metrics():
    return Recorder()


@pytest.fixture(autouse=True)
def log_level(caplog):
    caplog.set_level(logging.WARNING, "ray.serve")


def watch(devices, metrics, taken=None, **more) -> MemoryWatch:
    need = StartNeed("awq", PLAN)
    return MemoryWatch(need, devices, metrics, taken or {}, pids=lambda: [7, 8], **more)


def test_plan_and_actual_are_told_for_every_device(metrics):
    first, second = FakeDevice("GPU-a"), FakeDevice("GPU-b")
    first.used, second.used = 900, 1000
    watch([first, second], metrics).sample()
    assert metrics.values == [
        ("planned", "GPU-a", PLAN),
        ("held", "GPU-a", 900, "pids"),
        ("planned", "GPU-b", PLAN),
        ("held", "GPU-b", 1000, "pids"),
    ]
    assert metrics.totals == {"GPU-a": 100, "GPU-b": 100}
    assert first.asked_pids == [[7, 8]]


def test_an_excess_is_warned_of_once_per_episode(metrics, caplog):
    device = FakeDevice()
    watched = watch([device], metrics)
    seen = []
    for device.used in (1000, 1001, 1500, 990, 1200, 979, 1001):
        watched.sample()
        seen.append(len(caplog.messages))
    # Within the plan; excess; still; not calm yet; still the same; calm; a new one.
    assert seen == [0, 1, 1, 1, 1, 1, 2]
    assert "awq holds 1001 B on GPU-a, its plan is 1000 B" in caplog.messages[0]
    assert "max_num_seqs" in caplog.messages[0]


def test_unattributed_memory_is_the_starts_figure_and_says_so(metrics, caplog):
    device = FakeDevice()
    device.used = None
    watched = watch([device], metrics, {"GPU-a": 1100})
    watched.sample()
    watched.sample()
    assert metrics.values[-1] == ("held", "GPU-a", 1100, "start")
    assert [("does not tell" in text, "its plan is" in text) for text in caplog.messages] == [
        (True, False),
        (False, True),
    ]


def test_without_any_figure_none_is_told(metrics):
    device = FakeDevice()
    device.used = None
    watch([device], metrics).sample()
    assert metrics.values == [("planned", "GPU-a", PLAN)]


def test_a_device_that_cannot_be_asked_is_told_once_and_asked_again(metrics, caplog):
    device = FakeDevice()
    watched = watch([device], metrics)
    for device.used in (EngineError("NVML is gone"), EngineError("still"), 5, EngineError("again")):
        watched.sample()
    assert metrics.values == [("planned", "GPU-a", PLAN), ("held", "GPU-a", 5, "pids")]
    assert [text.rpartition(": ")[2] for text in caplog.messages] == ["NVML is gone", "again"]


async def test_it_samples_until_it_is_cancelled(metrics):
    slept = []
    thrice = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            thrice.set()
            await asyncio.sleep(3600)

    task = watch([FakeDevice()], metrics, sleep=sleep).start()
    await thrice.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slept == [EVERY_S] * 3
    assert len(metrics.values) == 6


async def test_a_watch_that_fails_is_in_the_log(metrics, caplog):
    device = FakeDevice()
    device.used = ZeroDivisionError("a bug")
    task = watch([device], metrics).start()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert caplog.messages == ["the memory watch ended"]
    assert "a bug" in caplog.text
