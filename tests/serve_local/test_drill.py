"""The drill: open-loop traffic while everything behind the router changes, dies and grows.

In each phase something is done to the variants. No request may fail, but one whose stream had begun
on the very process that was killed; and that one ends in an error event. Beside the phases runs a
shadow, whose target is dead, slow, or out of memory: nobody may notice.
"""

import asyncio
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtests.observe.pages import read_page
from serve_app.config.schema import RouterUserConfig
from serve_app.serving.local_serve import LocalServe
from tests.fakes.drill import Driver, Fate, Row, Sent, rows, table
from tests.fakes.serve_client import metrics_file, replica_pids

pytestmark = [pytest.mark.serve, pytest.mark.timeout(420)]

MODEL, PORT = "m", 8170
RATE_PER_S, N_TOKENS = 10.0, 20
SCRIPT = {"ttft_ms": 40, "itl_ms": 15, "output_tokens": N_TOKENS, "own_process": True}
SCRIPTS: dict[str, dict[str, Any]] = {
    "a": SCRIPT,
    "b": SCRIPT,
    "slow": {**SCRIPT, "ttft_ms": 20_000},
    "hungry": {**SCRIPT, "faults": [{"kind": "OutOfMemory", "at": 1}]},
}
GHOST = "ghost"
"""A variant of the split without an application."""
SHARES = {"a": 6000, "b": 4000, "slow": 0, "hungry": 0, GHOST: 0}
SETTLE_S = 2.0
SEEN_S = 0.25
"""How much later than the killed process sent it a first byte may be seen here."""
COUNTERS = {
    "retried": "ray_quantile_router_retries_total",
    "broken off": "ray_quantile_router_broken_streams_total",
    "mirrored": "ray_quantile_shadow_mirrored_total",
}


class Config:
    """The Serve file, as the drill changes it."""

    def __init__(self) -> None:
        self.shares = dict(SHARES)
        self.replicas = 1
        self.script_of_a: dict[str, Any] = SCRIPT
        self.shadow: dict[str, Any] | None = None

    def user_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"split": self.shares, "fallback": ["a", "b"]}
        if self.shadow is not None:
            config["shadow"] = self.shadow
        RouterUserConfig.model_validate(config)
        return config

    def file(self) -> dict[str, Any]:
        router = {
            "name": "router",
            "route_prefix": "/",
            "import_path": "serve_app.app:router",
            "args": {"model": MODEL, "ingress_url": f"http://127.0.0.1:{PORT}"},
            "deployments": [
                {"name": "VariantRouter", "num_replicas": 2, "user_config": self.user_config()}
            ],
        }
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": PORT},
            "applications": [router, *(self._variant(name) for name in SCRIPTS)],
        }

    def _variant(self, name: str) -> dict[str, Any]:
        script = self.script_of_a if name == "a" else SCRIPTS[name]
        n = self.replicas if name == "a" else 1
        return {
            "name": name,
            "route_prefix": f"/variants/{name}",
            "import_path": "serve_app.app:variant",
            "args": {
                "model": MODEL,
                "name": name,
                "checkpoint": "none",
                "method": "awq",
                "engine": {"kind": "fake", "fake": script},
            },
            "deployments": [{"name": "VariantServer", "num_replicas": n}],
        }


class Instance:
    """The running instance, as the drill looks at it and changes it."""

    def __init__(self, serve: LocalServe, client: httpx.AsyncClient) -> None:
        self.serve = serve
        self.config = Config()
        self._client = client
        token = Path.home().joinpath(".ray", "auth_token").read_text().strip()
        self._auth = {"Authorization": f"Bearer {token}"}

    async def change(self, **changes: Any) -> None:
        """Put the changed configuration over Serve's REST API."""
        for name, value in changes.items():
            setattr(self.config, name, value)
        url = f"{self.serve.dashboard_url}/api/serve/applications/"
        answer = await self._client.put(url, json=self.config.file(), headers=self._auth)
        answer.raise_for_status()

    async def status(self, variant: str = "a") -> dict[str, Any]:
        answer = await self._client.get(f"{self.serve.base_url}/status")
        return answer.json()["variants"][variant]

    async def replicas_are(self, n: int, variant: str = "a") -> bool:
        replicas = (await self.status(variant))["replicas"]
        return replicas == {"running": n, "target": n}

    async def shares_are(self, shares: dict[str, int]) -> bool:
        """By every router replica: eight answers in a row say so."""
        url = f"{self.serve.base_url}/v1/models/{MODEL}"
        answers = [(await self._client.get(url)).json() for _ in range(8)]
        return all(answer.get("shares_bp") == shares for answer in answers)


async def until(condition: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    """Until it holds; a question that fails is asked again."""
    end_s = time.monotonic() + within_s
    while True:
        try:
            if await condition():
                return
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        assert time.monotonic() < end_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.25)


def engines_of(replica: int) -> list[psutil.Process]:
    """The processes of a replica's engine."""
    children = psutil.Process(replica).children(recursive=True)
    return [each for each in children if "fake_child" in " ".join(each.cmdline())]


def replica_of(variant: str) -> int:
    """The youngest: one that was replaced may still be there, to finish what it has."""
    return max(
        replica_pids(f"{variant}:VariantServer"), key=lambda pid: psutil.Process(pid).create_time()
    )


class Drill:
    """The phases. Each returns when what it did has come to its end."""

    def __init__(self, instance: Instance, driver: Driver) -> None:
        self.instance = instance
        self.driver = driver
        self.killed_s: dict[str, float] = {}
        """By phase, when its process was killed."""

    async def baseline(self) -> None:
        await asyncio.sleep(2 * SETTLE_S)

    async def split_change(self) -> None:
        shares = {**SHARES, "a": 3000, "b": 7000}
        await self.instance.change(shares=shares)
        await until(lambda: self.instance.shares_are(shares), 30, "the new split")

    async def redeploy(self) -> None:
        before = replica_pids("a:VariantServer")
        await self.instance.change(script_of_a={**SCRIPT, "itl_ms": 12})

        async def replaced() -> bool:
            pids = replica_pids("a:VariantServer") - before
            status = await self.instance.status()
            return bool(pids) and status["ready"] and await self.instance.replicas_are(1)

        await until(replaced, 60, "a new replica of a")

    async def replica_killed(self) -> None:
        await self._killed("replica SIGKILL", replica_of("a"))

    async def engine_killed(self) -> None:
        (engine,) = engines_of(replica_of("a"))
        await self._killed("engine SIGKILL", engine.pid)

    async def _killed(self, phase: str, pid: int) -> None:
        """Kill a process of `a` while streams run on it; until there is another replica."""
        before = replica_pids("a:VariantServer")
        async with asyncio.timeout(10):
            while not self.driver.in_flight("a"):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        self.killed_s[phase] = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        async def replaced() -> bool:
            fresh = replica_pids("a:VariantServer") - before
            return any(map(engines_of, fresh)) and (await self.instance.status())["ready"]

        await until(replaced, 60, f"a replica in place of that of {pid}")

    async def scale_up(self) -> None:
        await self.instance.change(replicas=3)
        await until(lambda: self.instance.replicas_are(3), 60, "three replicas")

    async def scale_down(self) -> None:
        await self.instance.change(replicas=1)
        await until(lambda: self.instance.replicas_are(1), 60, "one replica")

    async def shadow_dead(self) -> None:
        await self._shadow(GHOST)

    async def shadow_slow(self) -> None:
        await self._shadow("slow")

    async def shadow_out_of_memory(self) -> None:
        replica = replica_of("hungry")
        engines = engines_of(replica)
        await self._shadow("hungry")
        assert engines
        assert not any(each.is_running() for each in engines), "the shadow's engine was not asked"

    async def shadow_off(self) -> None:
        await self.instance.change(shadow=None)
        await asyncio.sleep(SETTLE_S)

    async def _shadow(self, variant: str) -> None:
        await self.instance.change(shadow={"variant": variant, "share_bp": 10_000})
        await asyncio.sleep(3 * SETTLE_S)


PHASES: dict[str, Callable[[Drill], Awaitable[None]]] = {
    "baseline": Drill.baseline,
    "split change": Drill.split_change,
    "variant redeploy": Drill.redeploy,
    "replica SIGKILL": Drill.replica_killed,
    "engine SIGKILL": Drill.engine_killed,
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
    quick = {"RAY_metrics_report_interval_ms": "1000"}
    with LocalServe(file, log=folder / "serve.log", ready_timeout_s=180, environ=quick) as running:
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
    assert not failed, _listing(failed)
    broken = [each for each in requests if each.fate is Fate.BROKEN]
    others = [each for each in broken if not _had_begun_where_it_was_killed(drill, each)]
    assert not others, _listing(others)
    assert len(requests) >= 300, "some hundred streams"
    for row in told:
        assert row.sent >= 10, row


def _had_begun_where_it_was_killed(drill: Drill, sent: Sent) -> bool:
    killed_s = drill.killed_s.get(sent.phase)
    if killed_s is None:  # sent just before the phase in which it was killed
        killed_s = min(
            (each for each in drill.killed_s.values() if each > sent.sent_s), default=0.0
        )
    return sent.variant == "a" and sent.first_s is not None and sent.first_s < killed_s + SEEN_S


def _listing(requests: list[Sent]) -> str:
    counts = Counter((each.phase, each.variant, each.detail[:160]) for each in requests)
    return "\n".join(f"{n} x {key}" for key, n in counts.most_common(15))


def counters(serve_pid: int) -> dict[str, float]:
    """The routers' counters by our names for them, over all replicas that Ray's pages tell of."""
    found = dict.fromkeys(COUNTERS, 0.0)
    names = {metric: name for name, metric in COUNTERS.items()}
    for family in families(serve_pid):
        for sample in family.samples:
            if (name := names.get(sample.name)) is not None:
                found[name] += sample.value
    return found


def families(serve_pid: int) -> list[Any]:
    """Every metric on Ray's pages. A page that is not there at the moment tells nothing."""
    found: list[Any] = []
    for group in yaml.safe_load(metrics_file(serve_pid).read_text()):
        for target in group["targets"]:
            try:
                page = read_page(f"http://{target}/metrics", 5.0)
            except OSError:
                continue
            found += text_string_to_metric_families(page)
    return found


def test_labels_of_the_routers_metrics_are_names_that_we_gave(serve: LocalServe) -> None:
    """After all of it: by Ray's own pages, with the names that Ray gives to our metrics."""
    values: dict[str, set[str]] = defaultdict(set)
    for family in families(serve.pid):
        if family.name.startswith("ray_quantile_"):
            for sample in family.samples:
                for label in ("variant", "reason", "status"):
                    if label in sample.labels:
                        values[label].add(sample.labels[label])
    assert {"a", "b"} <= values["variant"] <= {*SHARES, "none"}
    assert values["status"] <= {"200", "503"}
    assert values["reason"] <= {"weighted", "fallback", "local", "rejected"}
