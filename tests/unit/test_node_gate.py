"""The start gate in one process, by a clock of its own; tests/contract has it between processes."""

import asyncio
import contextlib
import logging
import os

import pytest

from serve_app.domain.errors import EngineError
from serve_app.domain.units import GIB
from serve_app.node.devices import Holding
from serve_app.node.gate import GateTimes, StartGate, StartNeed
from serve_app.node.locks import RecordLock, lock_holder
from tests.fakes.devices import FakeDevice

TIMES = GateTimes(settle_s=1, lock_timeout_s=50, memory_timeout_s=20, poll_s=0.5, report_every_s=10)


class Clock:
    """Every sleep of anybody moves the time on, and lets the others run."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(tmp_path, clock):
    return StartGate(tmp_path, TIMES, clock, clock.sleep)


def need(variant: str = "awq", n_bytes: int = 50) -> StartNeed:
    return StartNeed(variant, n_bytes)


async def test_a_free_device_is_had_after_the_settle_time(gate, clock, tmp_path):
    async with gate.turn(need(), [FakeDevice(free=70)]) as free:
        assert clock.now_s == 1001
        assert free == {"GPU-a": 70}
        assert lock_holder(tmp_path / "GPU-a.lock").pid == os.getpid()
        assert list((tmp_path / "tickets").iterdir()) == []
    assert lock_holder(tmp_path / "GPU-a.lock") is None


async def test_starts_take_turns_the_largest_first_and_one_at_a_time(gate):
    running, order = [], []

    async def start(name: str, n_bytes: int) -> None:
        async with gate.turn(need(name, n_bytes), [FakeDevice()]):
            running.append(name)
            for _ in range(5):
                await asyncio.sleep(0)
                assert running == [name]
            order.append(name)
            running.remove(name)

    await asyncio.gather(*(start(f"v{n}", n) for n in (20, 50, 10, 40)))
    assert order == ["v50", "v40", "v20", "v10"]


async def test_different_devices_start_side_by_side(gate):
    both = asyncio.Barrier(2)

    async def start(key: str) -> None:
        async with gate.turn(need(key), [FakeDevice(key)]):
            await both.wait()

    async with asyncio.timeout(5):
        await asyncio.gather(start("GPU-a"), start("GPU-b"))


async def test_several_devices_are_all_had_or_none(gate, clock, tmp_path):
    other = RecordLock(tmp_path / "GPU-b.lock")
    assert other.acquire(b"")
    pair = [FakeDevice("GPU-b"), FakeDevice("GPU-a")]
    turn = gate.turn(need(), pair)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(turn.__aenter__())
        while clock.now_s < 1005:
            await asyncio.sleep(0)
            assert lock_holder(tmp_path / "GPU-a.lock") is None, "held while it cannot start"
        other.release()
    assert waiting.result() == {"GPU-a": 100, "GPU-b": 100}
    assert lock_holder(tmp_path / "GPU-a.lock")
    assert lock_holder(tmp_path / "GPU-b.lock")
    await turn.__aexit__(None, None, None)


async def test_a_failed_start_gives_the_turn_on(gate, tmp_path):
    with pytest.raises(ZeroDivisionError):
        async with gate.turn(need(), [FakeDevice()]):
            raise ZeroDivisionError
    assert lock_holder(tmp_path / "GPU-a.lock") is None


@pytest.mark.parametrize("stage", ["queue", "memory", "start"])
async def test_a_cancelled_start_leaves_nothing_behind(gate, tmp_path, stage):
    reached = asyncio.Event()
    other = RecordLock(tmp_path / "GPU-a.lock")
    if stage == "queue":
        assert other.acquire(b"")
    slow = StartGate(tmp_path, GateTimes(settle_s=0, poll_s=0.01))

    async def start() -> None:
        async with slow.turn(need(), [FakeDevice(free=10 if stage == "memory" else 70)]):
            reached.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(start())
    if stage == "start":
        await reached.wait()
    else:
        await asyncio.sleep(0.1)
        held = lock_holder(tmp_path / "GPU-a.lock")
        assert held is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    other.release()
    assert task.cancelled()
    assert lock_holder(tmp_path / "GPU-a.lock") is None
    assert list((tmp_path / "tickets").iterdir()) == []


async def test_memory_of_a_dead_neighbour_is_waited_for_with_the_turn_in_hand(
    gate, clock, tmp_path
):
    device = FakeDevice(free=[10, 20, 49, 50])
    async with gate.turn(need(), [device]) as free:
        assert free == {"GPU-a": 50}
        assert clock.now_s == 1001 + 3 * 0.5


async def test_memory_that_does_not_come_ends_with_need_have_and_holders(gate, clock, tmp_path):
    device = FakeDevice(total=24 * GIB, free=3 * GIB)
    device.holding = [Holding(77, 20 * GIB), Holding(78, None)]
    with pytest.raises(EngineError) as caught:
        async with gate.turn(need("awq", 5 * GIB), [device]):
            pytest.fail("it started without its memory")
    said = str(caught.value)
    assert "awq needs 5.00 GiB on GPU-a; 3.00 GiB of 24.0 GiB are free" in said
    assert "pid 77 20.0 GiB, pid 78 an unknown amount" in said
    assert "20 s" in said and "kv_cache_memory_bytes" in said
    assert clock.now_s == pytest.approx(1021)
    assert lock_holder(tmp_path / "GPU-a.lock") is None


async def test_what_can_never_fit_is_refused_at_once(gate, clock):
    with pytest.raises(EngineError, match=r"needs 101 B on GPU-b and all of it is 100 B"):
        async with gate.turn(need("awq", 101), [FakeDevice(total=200), FakeDevice("GPU-b")]):
            pytest.fail("it started")
    assert clock.now_s == 1000


async def test_no_turn_in_time_says_who_holds_it(gate, clock, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ray.serve")
    async with gate.turn(need("gptq"), [FakeDevice()]):
        with pytest.raises(EngineError) as caught:
            async with gate.turn(need("awq"), [FakeDevice()]):
                pytest.fail("two at once")
    said = str(caught.value)
    assert "awq got no turn to start on GPU-a within 50 s" in said
    assert f"held by variant gptq (pid {os.getpid()}), since 50 s" in said
    reports = [record for record in caplog.messages if record.startswith("variant awq waits")]
    assert len(reports) == 4  # after 10, 20, 30 and 40 s; the 50th is the error
    assert "gptq" in reports[0]


async def test_a_holder_without_a_note_is_named_by_its_pid(gate, tmp_path):
    lock = RecordLock(tmp_path / "GPU-a.lock")
    assert lock.acquire(b"")
    with pytest.raises(EngineError, match=rf"GPU-a is held by pid {os.getpid()}"):
        async with gate.turn(need(), [FakeDevice()]):
            pytest.fail("two at once")
    lock.release()


async def test_those_ahead_in_the_queue_are_named(gate, tmp_path):
    lock = RecordLock(tmp_path / "GPU-a.lock")
    assert lock.acquire(b"")

    async def start(name: str, n_bytes: int) -> str:
        with pytest.raises(EngineError) as caught:
            async with gate.turn(need(name, n_bytes), [FakeDevice()]):
                pytest.fail("two at once")
        return str(caught.value)

    small, _ = await asyncio.gather(start("small", 10), start("large", 90))
    lock.release()
    assert f"before it in the queue: large (pid {os.getpid()})" in small
