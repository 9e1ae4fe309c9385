"""A fake engine on a real socket, in a process of its own so that it keeps its own time."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from serve_app.serving.ports import free_port

START_S = 20.0
FakeServer = Callable[..., str]


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    """Start a fake engine: `fake_server("m@a", "m", ttft_ms=20)` returns its base URL."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*models: str, **script: object) -> str:
        port = free_port()
        names = [part for model in models for part in ("--model", model)]
        command = [sys.executable, "-m", "serve_app.engines.fake", "--port", str(port), *names]
        process = subprocess.Popen([*command, "--script", json.dumps(script)])
        processes.append(process)
        base_url = f"http://127.0.0.1:{port}"
        _wait_until_up(base_url, process)
        return base_url

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # open streams hold uvicorn back
            process.kill()
            process.wait()


def _wait_until_up(base_url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "the fake engine ended before it answered"
        try:
            urllib.request.urlopen(f"{base_url}/v1/models", timeout=1).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"the fake engine did not answer within {START_S:g} s")
