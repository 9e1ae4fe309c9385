"""The drill: open-loop traffic while everything behind the router changes, dies and grows.

In each phase something is done to the variants. No request may fail, but one whose stream had begun
on the very process that was killed; and that one ends in an error event. Only a router replica that
is killed cuts its streams in silence, and only its own: which they are is hidden behind HAProxy, so
the replica is frozen for a second before it is killed. Its streams are those that fall silent; a
stream of the other replica goes on, and may not fail. Beside the phases runs a shadow, whose target
is dead, slow, or out of memory: nobody may notice.
"""

import asyncio
import math
import os
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator

import httpx
import psutil
import pytest
import yaml

from serve_app.serving.local_serve import LocalServe
from serve_app.serving.openapi import ERRORS
from serve_app.serving.ports import own_ports
from tests.fakes.drill import SILENT_AFTER_S, Driver, Fate, Row, Sent, fell_silent, rows, table
from tests.fakes.drill_instance import (
    COUNTERS,
    GHOST,
    MODEL,
    N_TOKENS,
    PORT,
    SCRIPT,
    SHARES,
    Config,
    Instance,
    counters,
    engines_of,
    families,
    until,
)
from tests.fakes.fuzz_cases import Case, cases
from tests.fakes.fuzz_judge import complaints
from tests.fakes.serve_client import direct_ports
from tests.fakes.variant_host import MAX_HEAD_BYTES, MAX_HEADERS
from tests.fakes.wire import Wire

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

RATE_PER_S = 10.0
ENV = {
    # A router replica that dies with a request that has not begun: HAProxy asks the other one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_metrics_report_interval_ms": "1000",
}
N_FUZZED = 1500
SETTLE_S = 2.0
FRESH_S = 0.1
WITHIN_S = 150.0
"""How long a change may take on a machine that others use too; alone it takes seconds."""
FROZEN_S = 2 * SILENT_AFTER_S
SEEN_S = 0.25
"""How much later than the killed process sent it a first byte may be seen here."""


class Drill:
    """The phases. Each returns when what it did has come to its end."""

    def __init__(self, instance: Instance, driver: Driver) -> None:
        self.instance = instance
        self.driver = driver
        self.killed_s: dict[str, float] = {}
        """By phase, when its process was killed."""
        self.router_frozen_s = math.nan

    async def baseline(self) -> None:
        await asyncio.sleep(2 * SETTLE_S)

    async def split_change(self) -> None:
        shares = {**SHARES, "a": 7000, "b": 3000}
        await self.instance.change(shares=shares)
        await until(lambda: self.instance.shares_are(shares), WITHIN_S, "the new split")

    async def redeploy(self) -> None:
        before = self.instance.replica_pids("a:VariantServer")
        await self.instance.change(script_of_a={**SCRIPT, "itl_ms": 12})

        async def replaced() -> bool:
            pids = self.instance.replica_pids("a:VariantServer") - before
            status = await self.instance.status()
            return bool(pids) and status["ready"] and await self.instance.replicas_run(1)

        await until(replaced, WITHIN_S, "a new replica of a")

    async def replica_killed(self) -> None:
        await self._killed("replica SIGKILL", self.instance.replica_of("a"))

    async def engine_killed(self) -> None:
        (engine,) = engines_of(self.instance.replica_of("a"))
        await self._killed("engine SIGKILL", engine.pid)

    async def _killed(self, phase: str, pid: int) -> None:
        """Kill a process of `a` while streams run on it; until there is another replica."""
        before = self.instance.replica_pids("a:VariantServer")
        await until(self._streams_run, WITHIN_S, "streams on a", every_s=0.01)
        self.killed_s[phase] = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        async def replaced() -> bool:
            fresh = self.instance.replica_pids("a:VariantServer") - before
            return any(map(engines_of, fresh)) and (await self.instance.status())["ready"]

        await until(replaced, WITHIN_S, f"a replica in place of that of {pid}")

    async def router_killed(self) -> None:
        """One of two: what had begun on it is cut, as nobody is left to end it.

        It stands still first, until it has been seen whose streams go on without it.
        """
        before = self.instance.replica_pids("router:VariantRouter")
        await until(self._streams_run, WITHIN_S, "streams on a", every_s=0.01)
        router = max(before)
        self.router_frozen_s = time.monotonic()
        os.kill(router, signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        self.killed_s["router SIGKILL"] = time.monotonic()
        os.kill(router, signal.SIGKILL)

        async def replaced() -> bool:
            fresh = self.instance.replica_pids("router:VariantRouter") - before
            return any(map(direct_ports, fresh))

        await until(replaced, WITHIN_S, "a router replica in place of the one killed")

    async def scale_up(self) -> None:
        await self.instance.change(replicas=3)
        await until(lambda: self.instance.replicas_run(3), WITHIN_S, "three replicas")

    async def scale_down(self) -> None:
        await self.instance.change(replicas=1)
        await until(lambda: self.instance.replicas_run(1), WITHIN_S, "one replica")

    async def shadow_dead(self) -> None:
        await self._shadow(GHOST)

    async def shadow_slow(self) -> None:
        await self._shadow("slow")

    async def shadow_out_of_memory(self) -> None:
        replica = self.instance.replica_of("hungry")
        engines = engines_of(replica)
        await self._shadow("hungry")
        assert engines
        assert not any(each.is_running() for each in engines), "the shadow's engine was not asked"

    async def shadow_off(self) -> None:
        await self.instance.change(shadow=None)
        await asyncio.sleep(SETTLE_S)

    async def _streams_run(self) -> bool:
        """Several on `a`, and one of them has only begun: it is still there in a moment."""
        now_s = time.monotonic()
        begun = [each.first_s for each in self.driver.in_flight("a") if each.streams]
        fresh = [each for each in begun if each is not None and now_s - each < FRESH_S]
        return len(begun) >= 2 and bool(fresh)

    async def _shadow(self, variant: str) -> None:
        await self.instance.change(shadow={"variant": variant, "share_bp": 10_000})
        await asyncio.sleep(3 * SETTLE_S)


PHASES: dict[str, Callable[[Drill], Awaitable[None]]] = {
    "baseline": Drill.baseline,
    "split change": Drill.split_change,
    "variant redeploy": Drill.redeploy,
    "replica SIGKILL": Drill.replica_killed,
    "engine SIGKILL": Drill.engine_killed,
    "router SIGKILL": Drill.router_killed,
    "scale 1 -> 3": Drill.scale_up,
    "scale 3 -> 1": Drill.scale_down,
    "shadow dead": Drill.shadow_dead,
    "shadow slow": Drill.shadow_slow,
    "shadow out of memory": Drill.shadow_out_of_memory,
    "shadow off": Drill.shadow_off,
}


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("drill")
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(Config().file(), sort_keys=False))
    with LocalServe(
        file, log=folder / "serve.log", ready_timeout_s=300, environ=own_ports() | ENV
    ) as running:
        yield running
        children = psutil.Process(running.pid).children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"left running: {[process.name() for process in alive]}"


async def test_nobody_notices_what_happens_behind_the_router(serve: LocalServe) -> None:
    counted: list[dict[str, float]] = []
    async with httpx.AsyncClient(timeout=30) as client:
        instance = Instance(serve, client)
        driver = Driver(serve.base_url, MODEL, rate_per_s=RATE_PER_S, n_tokens=N_TOKENS)
        drill = Drill(instance, driver)
        async with driver:
            for phase, act in PHASES.items():
                driver.phase(phase)
                before = await asyncio.to_thread(counters, serve.pid)
                await act(drill)
                await asyncio.sleep(SETTLE_S)
                after = await asyncio.to_thread(counters, serve.pid)
                counted.append({name: after[name] - before[name] for name in after})
    told = rows(driver.requests, driver.phases)
    for row, more in zip(told, counted, strict=True):
        row.counted = more
    print("\n" + table(told, list(COUNTERS)))
    _assert_nobody_noticed(drill, told)


def _assert_nobody_noticed(drill: Drill, told: list[Row]) -> None:
    requests = drill.driver.requests
    failed = [each for each in requests if each.fate is Fate.FAILED]
    router_s = drill.router_frozen_s, drill.killed_s["router SIGKILL"]
    lost = [each for each in failed if not fell_silent(each, *router_s)]
    assert not lost, _listing(lost)
    broken = [each for each in requests if each.fate is Fate.BROKEN]
    killed_s = [drill.killed_s[phase] for phase in ("replica SIGKILL", "engine SIGKILL")]
    others = [
        each
        for each in broken
        if each.variant != "a" or not any(_had_begun(each, at_s) for at_s in killed_s)
    ]
    assert not others, _listing(others)
    assert len(requests) >= 300, "some hundred streams"
    by_phase = {row.phase: row for row in told}
    assert all(row.sent >= 10 for row in told), told
    assert all(by_phase[phase].broken for phase in ("replica SIGKILL", "engine SIGKILL")), told
    for phase in ("shadow dead", "shadow slow", "shadow out of memory"):
        assert by_phase[phase].counted["shadow dropped"] > 0, by_phase[phase]


def _had_begun(sent: Sent, killed_s: float) -> bool:
    """Whether it was under way when a process was killed, and its answer had begun."""
    begun = sent.first_s is not None and sent.first_s < killed_s + SEEN_S
    return begun and sent.sent_s < killed_s < sent.end_s


def _listing(requests: list[Sent]) -> str:
    counts = Counter((each.phase, each.variant, each.detail[:160]) for each in requests)
    return "\n".join(f"{n} x {key}" for key, n in counts.most_common(15))


async def test_nothing_that_a_client_sends_harms_those_behind_the_ingress(
    serve: LocalServe,
) -> None:
    """The seeded families of the fuzz, through Serve's ingress on both sides of the router."""
    wire, wrong, canaries = Wire(PORT), [], Counter[tuple[str | None, str | None]]()
    asked = [each for each in cases(N_FUZZED, seed=27, first_number=0) if not _waits(each)]

    async def work(waiting: Iterator[Case]) -> None:
        for case in waiting:
            outcome = await wire.talk(case.talk)
            found = complaints(
                case.talk,
                outcome,
                well_formed=case.well_formed and _fits(case),
                variants=SHARES,
                cut=(),
            )
            wrong.extend(f"{case.family}: {text}" for text in found)
            for reply in outcome.replies:
                if case.expects is not None and _fits(case) and reply.status not in case.expects:
                    wrong.append(f"{case.family}: status {reply.status}: {reply.body[:200]!r}")
                if case.family == "canary":
                    canaries[reply.header("x-variant"), reply.header("x-route-reason")] += 1

    waiting = iter(asked)
    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(work(waiting))
    print(f"\n{sum(each.n_requests for each in asked)} requests; canaries: {dict(canaries)}")
    if wrong:
        pytest.fail(f"{len(wrong)} wrong answers:\n" + "\n".join(wrong[:20]))
    assert canaries.keys() <= {("a", "sticky"), ("b", "sticky")}, canaries


def _waits(case: Case) -> bool:
    """Whether it asks the variant that takes twenty seconds."""
    return any(isinstance(each, bytes) and b"@slow" in each for each in case.talk.pieces)


def _fits(case: Case) -> bool:
    """Whether the ingress takes its headers; else it answers 400 by itself."""
    head = case.talk.pieces[0]
    assert isinstance(head, bytes)
    head = head.partition(b"\r\n\r\n")[0]
    return len(head) < MAX_HEAD_BYTES and head.count(b"\r\n") <= MAX_HEADERS


def test_labels_of_the_routers_metrics_are_names_that_we_gave(serve: LocalServe) -> None:
    """After all of it: by Ray's own pages, with the names that Ray gives to our metrics."""
    values: dict[str, set[str]] = defaultdict(set)
    for family in families(serve.pid):
        if family.name.startswith("ray_quantile_"):
            for sample in family.samples:
                for label in ("variant", "status", "reason"):
                    if label in sample.labels:
                        values[label].add(sample.labels[label])
    assert {"a", "b"} <= values["variant"] <= {*SHARES, "none"}
    assert values["status"] <= {"200", *map(str, ERRORS)}
    assert all(re.fullmatch("[a-z_]{1,40}", reason) for reason in values["reason"]), values
