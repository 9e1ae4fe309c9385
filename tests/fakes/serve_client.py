"""What the tests of a running instance share: asking it, and looking at its processes."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from serve_app.config.secrets import internal_token

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


def replica_pids(title: str, serve_pid: int | None = None) -> set[int]:
    """Processes of replicas, by the name that Ray gives them: `router:VariantRouter`.

    Of all on this machine, or of the `serve run` with this process id: what kills them names it.
    """
    found = psutil.process_iter() if serve_pid is None else _descendants(serve_pid)
    pids = set()
    for process in found:
        try:
            if f"ServeReplica:{title}" in " ".join(process.cmdline()):
                pids.add(process.pid)
        except psutil.Error:  # it ended meanwhile, or is nobody's to look at
            continue
    return pids


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def direct_ports(pid: int) -> list[int]:
    """Ports on which a replica takes requests from the ingress."""
    connections = psutil.Process(pid).net_connections("tcp")
    listening = [item.laddr for item in connections if item.status == psutil.CONN_LISTEN]
    return [address.port for address in listening if 30000 <= address.port < 31000]


def metrics_file(pid: int) -> Path:
    """Where Ray lists the metrics pages of the `serve run` with this process id.

    The file of the same name in /tmp/ray itself is that of the machine's last instance.
    """
    (found,) = Path("/tmp/ray").glob(f"session_*_{pid}/prom_metrics_service_discovery.json")
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until `condition` held; fails the test after `timeout_s`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - start
