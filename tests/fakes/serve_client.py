"""What the tests of a running instance share: asking it, and looking at its processes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve_app.config.secrets import internal_token
from serve_app.serving.ports import REPLICA_PORTS

CHAT = "/v1/chat/completions"


def chat(model: str, max_tokens: int = 8, **more) -> dict:
    """A chat request."""
    message = {"role": "user", "content": "hi"}
    return {"model": model, "messages": [message], "max_tokens": max_tokens, **more}


async def running_requests(client: httpx.AsyncClient, variant: str) -> float:
    """Requests that the variant's engine works on, by its own metric."""
    token = {"x-quantile-internal": internal_token()}
    answer = await client.get(f"/variants/{variant}/metrics", headers=token, follow_redirects=True)
    answer.raise_for_status()
    lines = answer.text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("vllm:num_requests_running")
    )


def replica_pids(title: str, serve_pid: int) -> set[int]:
    """Processes of replicas below a `serve run`, by Ray's name for them: `router:VariantRouter`.

    Below one alone: whoever kills them must not meet another instance's.
    """
    pids = set()
    for process in psutil.Process(serve_pid).children(recursive=True):
        try:
            if f"ServeReplica:{title}" in " ".join(process.cmdline()):
                pids.add(process.pid)
        except psutil.Error:  # it ended meanwhile, or is nobody's to look at
            continue
    return pids


def direct_ports(pid: int) -> list[int]:
    """Ports on which a replica takes requests from the ingress."""
    connections = psutil.Process(pid).net_connections("tcp")
    listening = [item.laddr for item in connections if item.status == psutil.CONN_LISTEN]
    return [address.port for address in listening if address.port in REPLICA_PORTS]


def metrics_file(pid: int) -> Path:
    """Where Ray lists the metrics pages of the `serve run` with this process id.

    The file of the same name in /tmp/ray itself is that of the machine's last instance. The newest,
    where an earlier process had the same id.
    """
    found = Path("/tmp/ray").glob(f"session_*_{pid}/prom_metrics_service_discovery.json")
    return max(found, key=lambda path: path.stat().st_mtime)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until `condition` held; fails the test after `timeout_s`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - start


def fake_args(model: str, name: str, script: dict[str, Any], method: str = "awq") -> dict[str, Any]:
    """Arguments of a variant whose engine is a fake one."""
    return {
        "model": model,
        "name": name,
        "checkpoint": "none",
        "method": method,
        "engine": {"kind": "fake", "fake": script},
    }
