"""The start gate between real processes, some of which are killed."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serve_app.domain.units import MIB
from serve_app.node.gate import GateTimes, StartGate, StartNeed
from serve_app.node.host import HostMemory
from serve_app.node.locks import RecordLock, lock_holder
from serve_app.node.tickets import posted_tickets
from tests.fakes.devices import FakeDevice

AT_ONCE_S = 1.0
SETTLED_S = 0.7
Starter = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def starter(tmp_path) -> Iterator[Starter]:
    """`starter("awq", 50, 1.5)`: a process that wants the turn, and holds it for 1.5 s."""
    started: list[subprocess.Popen[str]] = []

    def start(variant: str, need: int, hold_s: float, *options: str) -> subprocess.Popen[str]:
        arguments = [str(tmp_path), variant, str(need), str(hold_s), *options]
        command = [sys.executable, "-m", "tests.fakes.gate_process", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def stamp(process: subprocess.Popen[str], word: str) -> float:
    """The time in the process's next line, which begins with `word`."""
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert line[:1] == [word], f"expected {word}, have {line}"
    return float(line[1])


def test_turns_of_processes_never_overlap_and_go_largest_first(starter, tmp_path):
    needs = {"small": 10, "large": 90, "medium": 50, "tiny": 1}
    door = RecordLock(tmp_path / "GPU-a.lock")
    assert door.acquire(b"")
    processes = {name: starter(name, need, 0.2) for name, need in needs.items()}
    while len(posted_tickets(tmp_path / "tickets")) < len(needs):
        time.sleep(0.01)
    time.sleep(SETTLED_S)
    door.release()
    held = {name: stamp(process, "held") for name, process in processes.items()}
    released = {name: stamp(process, "released") for name, process in processes.items()}
    order = sorted(held, key=held.__getitem__)
    assert order == ["large", "medium", "small", "tiny"]
    for first, second in itertools.pairwise(order):
        assert released[first] <= held[second]


def test_a_killed_holder_gives_the_turn_on_at_once(starter, tmp_path):
    holder = starter("holder", 90, 60)
    stamp(holder, "held")
    assert lock_holder(tmp_path / "GPU-a.lock").pid == holder.pid
    waiter = starter("waiter", 10, 0)
    time.sleep(SETTLED_S)
    killed_s = time.monotonic()
    holder.kill()
    assert killed_s <= stamp(waiter, "held") < killed_s + AT_ONCE_S


def test_a_child_of_a_killed_holder_keeps_no_turn(starter, tmp_path):
    """With `flock` the forked child, an engine core say, would go on holding it."""
    holder = starter("holder", 90, 60, "fork")
    stamp(holder, "held")
    (child,) = psutil.Process(holder.pid).children()
    try:
        holder.kill()
        holder.wait()
        assert child.is_running()
        assert lock_holder(tmp_path / "GPU-a.lock") is None
        assert stamp(starter("next", 10, 0), "held")
        assert child.is_running()
    finally:
        child.kill()


def test_a_killed_waiter_has_no_ticket_any_more(starter, tmp_path):
    holder = starter("holder", 90, 3)
    stamp(holder, "held")
    large, small = starter("large", 80, 60), starter("small", 10, 0)
    time.sleep(SETTLED_S)
    assert {ticket.variant for ticket in posted_tickets(tmp_path / "tickets")} == {"large", "small"}
    large.kill()
    large.wait()
    assert {ticket.variant for ticket in posted_tickets(tmp_path / "tickets")} == {"small"}
    released_s = stamp(holder, "released")
    assert released_s <= stamp(small, "held") < released_s + AT_ONCE_S


class Rest(FakeDevice):
    """A device of `total` bytes, of which a real process holds what it holds of the machine's."""

    def __init__(self, total: int, pid: int) -> None:
        super().__init__(total=total)
        self._pid = pid

    def free_bytes(self) -> int:
        return self.total - HostMemory().used_by([self._pid])


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds 300 MiB."""
    code = f"block = b'x' * {300 * MIB}; print(len(block), flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


async def test_the_memory_of_a_dead_neighbour_is_waited_for(neighbour, tmp_path):
    gate = StartGate(tmp_path, GateTimes(settle_s=0, poll_s=0.02))
    turn = gate.turn(StartNeed("awq", 400 * MIB), [Rest(500 * MIB, neighbour.pid)])
    start = asyncio.create_task(turn.__aenter__())
    await asyncio.sleep(0.5)
    assert not start.done(), "started beside a neighbour that leaves too little"
    assert lock_holder(tmp_path / "GPU-a.lock").pid == os.getpid()
    os.kill(neighbour.pid, signal.SIGKILL)
    async with asyncio.timeout(AT_ONCE_S):
        free = await start
    assert free["GPU-a"] >= 400 * MIB
    await turn.__aexit__(None, None, None)
