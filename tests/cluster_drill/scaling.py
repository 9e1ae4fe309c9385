"""Inside a lab: `configs/prod.yaml` on the RayService's own groups, under Ray's autoscaler v2.

`python -m tests.cluster_drill.scaling FOLDER`: load on three variants brings replicas, replicas
bring nodes; without it both go. The autoscaler is the program that KubeRay puts beside the head; it
asks a stand-in for Kubernetes, whose pods are hosts here.
"""

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from cluster.check.serve_config import content
from tests.cluster_drill.cluster import Cluster
from tests.cluster_drill.dashboard import Dashboard
from tests.cluster_drill.hosts import Lan
from tests.cluster_drill.kube_api import kube_api
from tests.cluster_drill.kuberay import INGRESS_PORT, ray_cluster, ray_service
from tests.cluster_drill.lab import write_facts
from tests.cluster_drill.serve_files import ROUTER, hurried, with_fake_engines
from tests.fakes.drill_instance import until
from tests.fakes.serve_client import CHAT, chat

IDLE_S = 4.0
SCRIPT = {"ttft_ms": 50, "itl_ms": 500, "output_tokens": 12}
CLIENTS = {"awq": 40, "int8": 48, "fp8": 112}
"""Requests under way at each variant: with prod.yaml's targets (16, 32, 32) 3, 2 and 4 replicas."""
FEWEST = dict.fromkeys(CLIENTS, 1)
LOADED = {"awq": 3, "int8": 2, "fp8": 4}
WITHIN_S = 240.0


class Drill:
    """The stages, and what was seen at the end of each."""

    def __init__(self, cluster: Cluster, dashboard: Dashboard) -> None:
        self.stages: list[dict[str, Any]] = []
        self.answers: Counter[str] = Counter()
        self._cluster = cluster
        self._dashboard = dashboard
        self._config = hurried(
            with_fake_engines(content(), SCRIPT), look_back_s=6, downscale_delay_s=4
        )

    async def run(self) -> None:
        """All of them."""
        start_s = time.monotonic()
        await until(self._dashboard.is_there, WITHIN_S, "a head that takes a Serve config")
        await self._see("head", start_s)
        start_s = time.monotonic()
        await self._dashboard.put(self._config)
        await until(self._settled(FEWEST), WITHIN_S, "every application, no node idle")
        fewest = await self._see("fewest replicas", start_s)
        ingress = next(each["node_ip"] for each in fewest if each["application"] == ROUTER)
        url = f"http://{ingress}:{INGRESS_PORT}{CHAT}"
        start_s = time.monotonic()
        async with self._load(url):
            await until(self._settled(LOADED), WITHIN_S, f"{LOADED} replicas, no node idle")
            await self._see("under load", start_s)
        start_s = time.monotonic()
        nodes = self.stages[1]["nodes"]
        await until(self._settled(FEWEST), WITHIN_S, "one replica of each again, no node idle")
        await until(self._nodes_are(nodes), WITHIN_S, f"no nodes but {nodes}")
        await self._see("load gone", start_s)

    async def _see(self, stage: str, start_s: float) -> list[dict[str, Any]]:
        seconds = time.monotonic() - start_s
        places = [each.as_fact() for each in await self._dashboard.places()]
        nodes = dict(self._cluster.nodes())
        self.stages.append({"stage": stage, "s": seconds, "nodes": nodes, "places": places})
        print(f"{stage}: {seconds:.1f} s, {nodes}", flush=True)
        return places

    def _settled(self, replicas: dict[str, int]) -> Callable[[], Awaitable[bool]]:
        """So many, and every node has one: the autoscaler may ask for a node too many, which goes
        when it was idle long enough.
        """

        async def holds() -> bool:
            running = await self._dashboard.running()
            used = {each.pod for each in await self._dashboard.places()}
            has_them = all(running[name] == n for name, n in replicas.items())
            return has_them and len(used) == sum(self._cluster.nodes().values())

        return holds

    def _nodes_are(self, nodes: dict[str, int]) -> Callable[[], Awaitable[bool]]:
        async def holds() -> bool:
            n_alive = len(await self._dashboard.nodes()) - 1  # the head
            return dict(self._cluster.nodes()) == nodes and n_alive == sum(nodes.values())

        return holds

    @asynccontextmanager
    async def _load(self, url: str) -> AsyncIterator[None]:
        """So many clients of each variant ask again and again; to the end of the block."""
        over = asyncio.Event()
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for variant, n in CLIENTS.items():
                for _ in range(n):
                    group.create_task(self._ask(session, url, variant, over))
            try:
                yield
            finally:
                over.set()

    async def _ask(
        self, session: aiohttp.ClientSession, url: str, variant: str, over: asyncio.Event
    ) -> None:
        model = f"{self._config['applications'][0]['args']['model']}@{variant}"
        body = chat(model, max_tokens=SCRIPT["output_tokens"], stream=True)
        while not over.is_set():
            try:
                async with session.post(url, json=body) as answer:
                    text = await answer.text()
                whole = answer.status == 200 and text.endswith("data: [DONE]\n\n")
                served = answer.headers.get("x-variant")
                self.answers["ok" if whole and served == variant else text[-200:]] += 1
            except aiohttp.ClientError as error:
                self.answers[repr(error)] += 1


async def main(folder: Path) -> None:
    """The drill, from an empty network to the facts."""
    cluster = Cluster(Lan(folder), ray_cluster(ray_service(), idle_s=IDLE_S))
    # No Redis here: nothing is killed.
    del cluster.object["spec"]["gcsFaultToleranceOptions"]
    with kube_api(cluster, secrets.token_hex(16)), cluster.kept():
        async with httpx.AsyncClient() as client:
            drill = Drill(cluster, Dashboard(client, cluster.secrets["RAY_AUTH_TOKEN"]))
            await drill.run()
    write_facts(folder, {"stages": drill.stages, "answers": drill.answers})


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
