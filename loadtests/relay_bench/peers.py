"""LiteLLM's proxy and SGLang's gateway, each in an environment of its own, kept for later runs."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.relay_bench.client import Task
from loadtests.relay_bench.nouns import LITELLM, SGLANG, Way
from loadtests.relay_bench.processes import run_client, running, tail
from loadtests.relay_bench.upstream import CHAT, MODEL, TOKEN
from serve_app.domain.errors import BuildError, InvalidRunError
from serve_app.reference.locate import cache_dir
from serve_app.serving.ports import free_port

_READY_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Peer:
    """A gateway from PyPI, at an exact version."""

    name: str
    requirements: tuple[str, ...]

    def command(self, python: Path, port: int, upstream_port: int, folder: Path) -> list[str]:
        """How it is started, in one process, with logging and retries of the request path low."""
        if self.name == SGLANG:
            return [
                *(str(python), "-m", "sglang_router.launch_router"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--worker-urls", f"http://127.0.0.1:{upstream_port}"),
                *("--policy", "round_robin", "--log-level", "error"),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            ]
        config = folder / "litellm.yaml"  # JSON is YAML
        config.write_text(json.dumps(litellm_config(upstream_port)))
        return [
            *(str(python.with_name("litellm")), "--config", str(config)),
            *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        ]


PEERS = (
    Peer(LITELLM, ("litellm[proxy]==1.108.7",)),
    Peer(SGLANG, ("sglang-router==0.3.2",)),
)


def litellm_config(upstream_port: int) -> dict[str, object]:
    """One model, no database, no keys, no callbacks: the least that LiteLLM can do."""
    params = {
        "model": f"openai/{MODEL}",
        "api_base": f"http://127.0.0.1:{upstream_port}/v1",
        "api_key": "none",
    }
    return {
        "model_list": [{"model_name": MODEL, "litellm_params": params}],
        "litellm_settings": {"set_verbose": False, "telemetry": False, "request_timeout": 600},
    }


def environment(requirements: Sequence[str]) -> Path:
    """The folder of the environment that has these requirements, for this Python."""
    key = "\n".join([sys.version, *requirements])
    return cache_dir() / f"bench-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def install(peer: Peer, log: Path) -> Path:
    """Its environment's Python, installed on the first call. Raises BuildError with pip's words."""
    folder = environment(peer.requirements)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python, ready = folder / "bin" / "python", folder / ".ready"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _must([sys.executable, "-m", "venv", "--without-pip", str(folder)], log)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        _must([*pip, "install", *peer.requirements], log)
        ready.touch()
    return python


def _must(command: Sequence[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise BuildError(
            f"`{' '.join(command)}` failed; without it, run without --peers. The end of {log}:\n"
            f"{tail(log)}"
        )


@contextlib.contextmanager
def peer_way(peer: Peer, upstream_port: int, folder: Path) -> Iterator[Way]:
    """Install and start a peer before the upstream; it ends with the block."""
    log = folder / f"{peer.name.split()[0].lower()}.log"
    python = install(peer, log)
    port = free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "NO_PROXY": "127.0.0.1,localhost",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # It takes a hundred like tokens in a row for a model that has gone mad; ours are all alike.
        "REPEATED_STREAMING_CHUNK_LIMIT": "1000000",
        # No keys to check: it listens on loopback only, and the others check none either.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = peer.command(python, port, upstream_port, folder)
    with running(command, log, env=environ, cwd=folder) as process:
        task = Task(port, CHAT, MODEL, 1, 1, 2, 0.0, TOKEN.decode(), timeout_s=20)
        until_s = time.monotonic() + _READY_TIMEOUT_S
        while True:
            try:
                run_client(task)
                break
            except InvalidRunError as error:
                if process.poll() is not None or time.monotonic() > until_s:
                    raise InvalidRunError(
                        f"{peer.name} does not serve: {error}; the end of {log}:\n{tail(log)}"
                    ) from None
                time.sleep(0.5)
        yield Way(peer.name, port, CHAT, (process.pid,))
