"""Inside a lab: a head and two worker hosts with a real Redis; hosts die and the split changes,
under load.

`python -m tests.cluster_drill.three_hosts FOLDER`
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from cluster.check.serve_config import content
from serve_app.splits.serve_api import ServeApi
from tests.cluster_drill.clients import Clients
from tests.cluster_drill.cluster import HEAD_IP, REDIS_IP, Cluster, start_redis
from tests.cluster_drill.dashboard import URL, Dashboard
from tests.cluster_drill.hosts import Lan
from tests.cluster_drill.kuberay import HEAD_GROUP, INGRESS_PORT, Object, ray_cluster, ray_service
from tests.cluster_drill.lab import write_facts
from tests.cluster_drill.serve_files import ROUTER, with_fake_engines, with_two_variants
from tests.fakes.drill_instance import until

VARIANTS = ("gptq", "awq")
SPLIT, NEW_SPLIT = {"gptq": 5000, "awq": 5000}, {"gptq": 1000, "awq": 9000}
N_TOKENS, RATE_PER_S = 40, 10.0
SCRIPT = {"ttft_ms": 40, "itl_ms": 15, "output_tokens": N_TOKENS}
HEAD_AWAY_S, SETTLE_S, WITHIN_S = 25.0, 4.0, 240.0
DARK_S = 20.0
"""How long is looked at after a loss of power."""
REPLICAS = {ROUTER: 2, **dict.fromkeys(VARIANTS, 2)}


class Drill:
    """The phases, and how long what was done to the hosts took."""

    def __init__(self, cluster: Cluster, dashboard: Dashboard, model: str) -> None:
        self.seconds: dict[str, float] = {}
        self.marks: dict[str, float] = {}
        """Seconds of the driver's clock."""
        self.places: list[dict[str, Any]] = []
        self.dark = ""
        """The address of the host that lost its power."""
        self._cluster = cluster
        self._dashboard = dashboard
        self._model = model

    async def bring_up(self, config: Object) -> None:
        """Until every replica runs, and every host's ingress has them."""
        with self._timed("brought up"):
            await until(self._dashboard.is_there, WITHIN_S, "a head that takes a Serve config")
            await self._dashboard.put(config)
            await until(self._is_whole, WITHIN_S, f"{REPLICAS} replicas, an ingress per host")
            await until(self._is_ready, WITHIN_S, "every ingress says ready")
            self.places = [each.as_fact() for each in await self._dashboard.places()]

    async def run(self, clients: Clients) -> None:
        """All phases, one after the other, while `clients` ask."""
        clients.phase("baseline")
        await asyncio.sleep(SETTLE_S)

        clients.phase("split change")
        with self._timed("new split seen by both routers"):
            api = ServeApi(URL, ROUTER, self._model, self._cluster.secrets["RAY_AUTH_TOKEN"])
            await api.change(SPLIT, NEW_SPLIT)
            await api.close()
            await until(self._shares_are_new, WITHIN_S, "the new split")
        clients.phase("new split")
        await asyncio.sleep(SETTLE_S)

        clients.phase("head killed")
        with self._cluster.without_head():
            await asyncio.sleep(HEAD_AWAY_S)
        clients.phase("head back")
        with self._timed("whole again with the new head"):
            await until(self._is_whole, WITHIN_S, "all as before the head was killed")
        await asyncio.sleep(SETTLE_S)

        clients.phase("worker host killed")
        clients.n_tries = 2
        await asyncio.sleep(SETTLE_S / 2)
        victim, survivor = self._workers()
        self.marks["worker host killed"] = time.monotonic()
        with self._timed("whole again with another host"):
            self._cluster.kill(victim)
            await until(self._another_than(victim.name), WITHIN_S, "another host")
            await until(self._is_whole, WITHIN_S, "all as before the host was killed")
        clients.phase("another host")
        clients.base_urls[:] = self.ingresses()
        await asyncio.sleep(SETTLE_S)

        clients.phase("worker host without power")
        await asyncio.sleep(SETTLE_S / 2)
        self.marks["worker host without power"] = time.monotonic()
        self.dark = survivor.ip
        self._cluster.cut_off(survivor)
        await asyncio.sleep(DARK_S)

    def ingresses(self) -> list[str]:
        """Of the worker hosts."""
        return [f"http://{pod.ip}:{INGRESS_PORT}" for pod in self._workers()]

    def _workers(self) -> list[Any]:
        return [pod for pod in self._cluster.pods() if pod.group != HEAD_GROUP]

    def _another_than(self, name: str) -> Any:
        async def holds() -> bool:
            return len([pod for pod in self._workers() if pod.name != name]) == 2

        return holds

    async def _is_whole(self) -> bool:
        ours = {pod.ip for pod in self._cluster.pods()}
        running = await self._dashboard.running()
        nodes = {each["node_ip"] for each in (await self._dashboard.nodes()).values()}
        return running == REPLICAS and ours == nodes == await self._dashboard.ingresses()

    async def _is_ready(self) -> bool:
        """Of each ingress eight answers in a row: there are two routers."""
        async with httpx.AsyncClient() as client:
            statuses = [(await client.get(f"{u}/readyz")).status_code for u in self.ingresses() * 8]
        return set(statuses) == {200}

    async def _shares_are_new(self) -> bool:
        """As `_is_ready`."""
        async with httpx.AsyncClient() as client:
            for url in self.ingresses() * 8:
                answer = await client.get(f"{url}/v1/models/{self._model}")
                if answer.json().get("shares_bp") != NEW_SPLIT:
                    return False
        return True

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - start_s
        print(f"{what}: {self.seconds[what]:.1f} s", flush=True)


def three_hosts() -> Object:
    """The RayService's cluster with its group of L4 alone: two hosts, each with a CPU on which a
    router may run. Nodes do not come and go by themselves."""
    cluster = ray_cluster(ray_service(), idle_s=600)
    spec = cluster["spec"]
    [workers] = [each for each in spec["workerGroupSpecs"] if each["groupName"] == "l4"]
    workers["replicas"] = 2
    workers["rayStartParams"]["num-cpus"] = "1"
    spec["workerGroupSpecs"] = [workers]
    spec["enableInTreeAutoscaling"] = False
    spec["gcsFaultToleranceOptions"]["redisAddress"] = f"{REDIS_IP}:6379"
    return cluster


async def main(folder: Path) -> None:
    """The drill, from an empty network to the facts."""
    lan = Lan(folder)
    cluster = Cluster(lan, three_hosts())
    redis = start_redis(lan, cluster.secrets["REDIS_PASSWORD"])
    config = with_two_variants(with_fake_engines(content(), SCRIPT), VARIANTS)
    model = config["applications"][0]["args"]["model"]
    with cluster.kept():
        async with httpx.AsyncClient() as client:
            drill = Drill(cluster, Dashboard(client, cluster.secrets["RAY_AUTH_TOKEN"]), model)
            await drill.bring_up(config)
            clients = Clients(drill.ingresses(), model, rate_per_s=RATE_PER_S, n_tokens=N_TOKENS)
            async with clients:
                await drill.run(clients)
    assert redis.is_alive, f"Redis has ended: {folder / 'redis' / 'output.log'}"
    facts = {"seconds": drill.seconds, "marks": drill.marks, "places": drill.places}
    facts |= {"head": HEAD_IP, "dark": drill.dark, "retried": clients.retried}
    requests = [{**asdict(each), "asked": clients.asked(each)} for each in clients.requests]
    write_facts(folder, {**facts, "phases": clients.phases, "requests": requests})


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
