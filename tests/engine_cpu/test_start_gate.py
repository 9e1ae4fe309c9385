"""Four real engines start at the same moment, again and again, while replicas are killed.

`QUANTILE_TEST_START_ROUNDS` sets how often (`make test-starts`: 20 times). Each round starts four
engines at one barrier in processes that stand for replicas; in four rounds of five one of them is
killed: while its engine starts, as the last or as any, while it waits, or while it serves.
"""

import ctypes
import itertools
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from serve_app.domain.units import MIB
from serve_app.node.locks import lock_holder
from serve_app.node.processes import identify, is_alive
from serve_app.node.registry import engine_records, reap_orphans
from serve_app.node.runtime import RUNTIME_DIR
from serve_app.node.tickets import posted_tickets
from tests.engine_cpu.conftest import CONFIG

ROUNDS = int(os.environ.get("QUANTILE_TEST_START_ROUNDS", "2"))
SEED = 20261120
PATIENCE_S = 240.0
GONE_S = 30.0
CACHES = [32 * MIB, 48 * MIB, 64 * MIB, 80 * MIB]
STAGES = ("last", "starting", "waiting", "ready")
_PR_SET_CHILD_SUBREAPER = 36

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300 + ROUNDS * 120)]
Event = dict[str, Any]


@pytest.fixture(scope="module")
def adopt_orphans() -> Iterator[None]:
    """What the killed leave behind becomes a child of this process, where it can be seen."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    yield
    prctl(_PR_SET_CHILD_SUBREAPER, 0)


class Replica:
    """A process that starts an engine when it is told to; its events come with its index."""

    def __init__(self, index: int, directory: Path, events: "queue.Queue[Event]") -> None:
        self.index = index
        with (directory.parent / f"replica-{index}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.start_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, RUNTIME_DIR: str(directory)},
            )
        self._reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._reader.start()

    def _read(self, events: "queue.Queue[Event]") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put({**json.loads(line), "replica": self.index, "pid": self.process.pid})

    def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass
class Fleet:
    """Four replicas, one per variant of configs/local.yaml, and what they said in this round."""

    directory: Path
    events: "queue.Queue[Event]" = field(default_factory=queue.Queue)
    said: list[Event] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        config = yaml.safe_load(CONFIG.read_text())
        self.variants = [entry["args"] for entry in config["applications"][1:]]
        self.replicas = [self.spawn(index) for index in range(len(self.variants))]
        self.wait_for("loaded", set(range(4)))

    def spawn(self, index: int) -> Replica:
        self.killed.discard(index)
        return Replica(index, self.directory, self.events)

    def seen(self, event: str) -> dict[int, Event]:
        """Replica to its event of this name, in this round and of the process that it is now."""
        current = {replica.index: replica.process.pid for replica in self.replicas}
        return {
            said["replica"]: said
            for said in self.said
            if said["event"] == event and current[said["replica"]] == said["pid"]
        }

    def wait_for(self, event: str, indices: set[int]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not indices <= self.seen(event).keys():
            self.take(deadline_s - time.monotonic())

    def take(self, timeout_s: float) -> None:
        """Note one event; none within the time is no error, but for the whole patience it is."""
        assert timeout_s > 0, f"missing after {PATIENCE_S} s; said: {self.said}"
        try:
            self.said.append(self.events.get(timeout=min(timeout_s, 1.0)))
        except queue.Empty:
            ended = {r.index for r in self.replicas if r.process.poll() is not None} - self.killed
            assert not ended, f"replicas {ended} ended by themselves; said: {self.said}"

    def start(self, caches: list[int], *, gated: bool) -> float:
        """Have all of them start at one moment, which is returned."""
        self.said.clear()
        at_s = time.monotonic() + 0.5
        for replica, args, cache in zip(self.replicas, self.variants, caches, strict=True):
            changed = {**args, "engine": {**args["engine"], "kv_cache_memory_bytes": cache}}
            replica.tell(do="start", args=changed, at_s=at_s, gated=gated)
        return at_s

    def kill(self, index: int) -> list[psutil.Process]:
        """Kill the replica; returns what it had as children."""
        replica = self.replicas[index]
        children = psutil.Process(replica.process.pid).children(recursive=True)
        self.killed.add(index)
        replica.kill()
        return children

    def stop(self) -> None:
        ready = set(self.seen("ready"))
        for index in ready:
            self.replicas[index].tell(do="stop")
        self.wait_for("stopped", ready)


@pytest.fixture(scope="module")
def strangers() -> set[int]:
    """Children that this process had before (another test's Serve, say)."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(scope="module")
def fleet(family, adopt_orphans, strangers, tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("starts") / "run"
    directory.mkdir(mode=0o700)
    fleet = Fleet(directory)
    yield fleet
    for replica in fleet.replicas:
        replica.kill()


def engines(fleet: Fleet, strangers: set[int]) -> list[str]:
    """Command lines of what runs below this process beside replicas and resource trackers."""
    ours = {replica.process.pid for replica in fleet.replicas}
    found = []
    for child in psutil.Process().children():
        if child.pid not in strangers:
            found += [child, *child.children(recursive=True)]
    lines = {}
    for process in found:
        try:
            if process.pid not in ours and identify(process.pid):
                lines[process.pid] = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
    return [f"{pid}: {line}" for pid, line in lines.items() if "resource_tracker" not in line]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + GONE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def intervals(fleet: Fleet) -> dict[int, tuple[float, float]]:
    """Replica to the time from the engine's first step to its readiness, of starts that ended."""
    ends = fleet.seen("end")
    return {
        index: (begin["at_s"], ends[index]["at_s"])
        for index, begin in fleet.seen("begin").items()
        if index in ends
    }


def overlaps(spans: list[tuple[float, float]]) -> int:
    pairs = itertools.combinations(spans, 2)
    return sum(a[0] < b[1] and b[0] < a[1] for a, b in pairs)


def kill_one(fleet: Fleet, stage: str, smallest: int, at_s: float, chance: random.Random) -> int:
    """Kill one at a random moment of its life; returns which."""
    victim = smallest if stage in ("waiting", "last") else chance.randrange(4)
    if stage == "waiting":
        moment_s = at_s + chance.uniform(0, 8)
    elif stage == "ready":
        fleet.wait_for("ready", {victim})
        moment_s = time.monotonic() + chance.uniform(0, 3)
    else:
        # After the last start nobody comes who would look for orphans.
        fleet.wait_for("begin", {victim})
        moment_s = time.monotonic() + chance.uniform(0.2, 6 if stage == "last" else 8)
    while (left_s := moment_s - time.monotonic()) > 0:
        fleet.take(left_s + 0.001)
    children = fleet.kill(victim)
    known = [identify(child.pid) for child in children]
    wait_until(
        lambda: not any(process and is_alive(process) for process in known),
        f"killed while {stage}, it left processes behind: {children}",
    )
    return victim


def play_round(fleet: Fleet, caches: list[int], stage: str | None, chance: random.Random) -> None:
    """One round through the gate, with every promise checked but those about its end."""
    at_s = fleet.start(caches, gated=True)
    by_size = sorted(range(4), key=lambda index: -caches[index])
    victim = kill_one(fleet, stage, by_size[-1], at_s, chance) if stage else None
    unkilled = {index for index in range(4) if index != victim}
    while not unkilled <= fleet.seen("ready").keys():
        assert not fleet.seen("failed"), fleet.said
        fleet.take(PATIENCE_S)
    begins = {said["replica"]: said["at_s"] for said in fleet.said if said["event"] == "begin"}
    assert sorted(begins, key=begins.__getitem__) == [i for i in by_size if i in begins]
    spans = intervals(fleet)
    assert unkilled <= spans.keys()
    assert overlaps(list(spans.values())) == 0, spans
    if victim is not None:
        fleet.replicas[victim] = fleet.spawn(victim)


def test_simultaneous_starts_all_succeed_one_at_a_time(fleet, strangers):
    chance = random.Random(SEED)
    stages = itertools.cycle(STAGES)
    started_s = time.monotonic()
    figures = []
    for number in range(ROUNDS):
        caches = chance.sample(CACHES, 4)
        stage = next(stages) if number % 5 else None
        round_s = time.monotonic()
        play_round(fleet, caches, stage, chance)
        spans = [end - begin for begin, end in intervals(fleet).values()]
        ready = fleet.seen("ready").values()
        use = [f"{said['held'] / said['planned']:.2f}" for said in ready]
        figures.append(
            f"round {number + 1}: killed {stage or 'none'}, {len(ready)} ready, starts "
            f"{min(spans):.1f} to {max(spans):.1f} s, round {time.monotonic() - round_s:.1f} s, "
            f"held/planned {' '.join(use)}"
        )
        print(figures[-1], flush=True)
        fleet.stop()
        wait_until(lambda: not engines(fleet, strangers), f"left: {engines(fleet, strangers)}")
        assert lock_holder(fleet.directory / "host.lock") is None
        assert posted_tickets(fleet.directory / "tickets") == []
        assert reap_orphans(fleet.directory).ended == ()
        assert engine_records(fleet.directory) == []
        fleet.said[:] = [said for said in fleet.said if said["event"] == "loaded"]
        if stage:
            victim = next(r for r in fleet.replicas if r.index not in {e["replica"] for e in ready})
            fleet.wait_for("loaded", {victim.index})
    print(f"{ROUNDS} rounds in {time.monotonic() - started_s:.0f} s", flush=True)


def test_without_the_gate_the_starts_overlap(fleet):
    fleet.start(CACHES, gated=False)
    fleet.wait_for("ready", set(range(4)))
    spans = list(intervals(fleet).values())
    print(f"starts {[round(end - begin, 1) for begin, end in spans]} s")
    assert overlaps(spans) == 6, "all six pairs of four starts"
    fleet.stop()
