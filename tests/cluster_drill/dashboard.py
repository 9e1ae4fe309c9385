"""What Ray's and Serve's REST APIs on the head say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from serve_app.serving.placement import ACCELERATOR_LABEL
from tests.cluster_drill.cluster import HEAD_IP
from tests.cluster_drill.kuberay import DASHBOARD_PORT

URL = f"http://{HEAD_IP}:{DASHBOARD_PORT}"
_APPLICATIONS = "/api/serve/applications/"


@dataclass(frozen=True)
class Place:
    """A replica that runs: of what application, on which pod, what Ray set aside for it."""

    application: str
    pod: str
    node_ip: str
    gpu_type: str
    """Of the node, by its Ray label; empty without one."""
    fraction: float

    def as_fact(self) -> dict[str, Any]:
        """For the drill's facts."""
        return asdict(self)


class Dashboard:
    """Asks as KubeRay's operator does; methods raise httpx.HTTPError while there is no answer."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"}

    async def put(self, config: Mapping[str, Any]) -> None:
        """`serve deploy`."""
        answer = await self._client.put(
            URL + _APPLICATIONS, json=config, headers=self._headers, timeout=60
        )
        answer.raise_for_status()

    async def is_there(self) -> bool:
        """Whether it takes a Serve config."""
        await self._get(_APPLICATIONS)
        return True

    async def running(self) -> dict[str, int]:
        """Replicas that run, by application; raises KeyError while one is not whole.

        An application is whole when it runs and its deployment has all the replicas it should.
        """
        found = {}
        for name, application in (await self._get(_APPLICATIONS))["applications"].items():
            [deployment] = application["deployments"].values()
            states = [each["state"] for each in deployment["replicas"]]
            if (application["status"], deployment["status"]) != ("RUNNING", "HEALTHY"):
                raise KeyError(f"{name}: {application['status']}, {deployment['status']}")
            if states.count("RUNNING") != deployment["target_num_replicas"]:
                raise KeyError(f"{name}: {states} of {deployment['target_num_replicas']}")
            found[name] = states.count("RUNNING")
        return found

    async def ingresses(self) -> set[str]:
        """Addresses of the hosts whose proxy is healthy."""
        proxies = (await self._get(_APPLICATIONS))["proxies"].values()
        return {each["node_ip"] for each in proxies if each["status"] == "HEALTHY"}

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """Nodes that are alive, by id."""
        rows = await self._rows("nodes")
        return {each["node_id"]: each for each in rows if each["state"] == "ALIVE"}

    async def places(self) -> list[Place]:
        """Where every replica that runs is, and what it took of the GPU there."""
        nodes, actors = await self.nodes(), await self._rows("actors")
        needs = {each["actor_id"]: each["required_resources"] or {} for each in actors}
        applications = (await self._get(_APPLICATIONS))["applications"]
        return [
            Place(
                application=name,
                pod=replica["node_instance_id"],
                node_ip=replica["node_ip"],
                gpu_type=nodes[replica["node_id"]]["labels"].get(ACCELERATOR_LABEL, ""),
                fraction=needs[replica["actor_id"]].get("GPU", 0.0),
            )
            for name, application in applications.items()
            for deployment in application["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        ]

    async def _rows(self, kind: str) -> list[dict[str, Any]]:
        query = "limit=1000&detail=True"
        if kind == "actors":
            query += "&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        answer = await self._get(f"/api/v0/{kind}?{query}")
        rows: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return rows

    async def _get(self, path: str) -> dict[str, Any]:
        answer = await self._client.get(URL + path, headers=self._headers, timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found
