"""The drill's Serve instance: its file, how it is changed over REST, and how it is looked at."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtests.observe.pages import read_page
from serve_app.config.schema import RouterUserConfig
from serve_app.config.serve_content import serve_content, variant_application
from serve_app.serving.local_serve import LocalServe
from tests.fakes.fuzz_cases import MAX_BODY_BYTES
from tests.fakes.serve_client import fake_args, metrics_file, replica_pids

MODEL, PORT = "m", 8170
N_TOKENS = 40
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
COUNTERS = {
    "retried": "ray_quantile_router_retries_total",
    "broken off": "ray_quantile_router_broken_streams_total",
    "shadow dropped": "ray_quantile_shadow_dropped_total",
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
        variants = [self._variant(name) for name in SCRIPTS]
        args = {"max_body_bytes": MAX_BODY_BYTES}
        return serve_content(PORT, MODEL, self.user_config(), variants, args, n_routers=2)

    def _variant(self, name: str) -> dict[str, Any]:
        script = self.script_of_a if name == "a" else SCRIPTS[name]
        n = self.replicas if name == "a" else 1
        return variant_application(fake_args(MODEL, name, script), {"num_replicas": n})


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

    def replica_pids(self, title: str) -> set[int]:
        """This instance's replicas; another may run on this machine."""
        return replica_pids(title, self.serve.pid)

    def replica_of(self, variant: str) -> int:
        """The youngest: one that was replaced may still be there, to finish what it has."""
        pids = self.replica_pids(f"{variant}:VariantServer")
        return max(pids, key=lambda pid: psutil.Process(pid).create_time())

    async def replicas_run(self, n: int, variant: str = "a") -> bool:
        """So many take requests; others may be on their way out, which takes Serve 35 s."""
        replicas = (await self.status(variant))["replicas"]
        return replicas is not None and replicas["running"] == n

    async def shares_are(self, shares: dict[str, int]) -> bool:
        """By every router replica: eight answers in a row say so."""
        url = f"{self.serve.base_url}/v1/models/{MODEL}"
        answers = [(await self._client.get(url)).json() for _ in range(8)]
        return all(answer.get("shares_bp") == shares for answer in answers)


async def until(
    condition: Callable[[], Awaitable[bool]], within_s: float, what: str, every_s: float = 0.25
) -> None:
    """Until it holds; a question that fails is asked again."""
    end_s = time.monotonic() + within_s
    while True:
        try:
            if await condition():
                return
        except (httpx.HTTPError, psutil.Error, ValueError, KeyError):
            pass
        assert time.monotonic() < end_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(every_s)


def engines_of(replica: int) -> list[psutil.Process]:
    """The processes of a replica's engine."""
    children = psutil.Process(replica).children(recursive=True)
    return [each for each in children if "fake_child" in " ".join(each.cmdline())]


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
