"""The mock engine as a process of its own, for as long as a `with` lasts."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests.bench.mock_server import SentStream
from loadtests.records.record import read_lines
from serve_app.domain.errors import InvalidRunError


class Mock:
    """A running mock. Its log is whole once it is closed."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, log: Path) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self._process = process
        self._log = log

    def close(self) -> list[SentStream]:
        """End the process; what it sent, in the order in which the requests came."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        return sorted(read_lines(self._log, SentStream), key=lambda sent: sent.received_ns)


@contextmanager
def mock_engine(
    folder: Path,
    *,
    ttft_ms: float,
    itl_ms: float,
    models: Sequence[str] = ("m@a",),
    jitter: float = 0.0,
    freeze_s: tuple[float, float] | None = None,
    role_with_token: bool = False,
    cpu: int | None = None,
) -> Iterator[Mock]:
    """Start a mock that logs into `folder`; on core `cpu` alone if given.

    Raises InvalidRunError if it does not start.
    """
    log = folder / "sent.jsonl"
    words = ["--ttft-ms", ttft_ms, "--itl-ms", itl_ms, "--jitter", jitter, "--log", log]
    words += [word for name in models for word in ("--model", name)]
    words += ["--freeze-s", *freeze_s] if freeze_s else []
    words += ["--role-with-token"] if role_with_token else []
    command = [*pinned(cpu), sys.executable, "-m", "loadtests.bench.mock_server"]
    command += [str(word) for word in words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        port = process.stdout.readline().strip()
    if not port:
        raise InvalidRunError(f"the mock engine ended with status {process.wait()}: see above")
    mock = Mock(process, int(port), log)
    try:
        yield mock
    finally:
        mock.close()


def pinned(cpu: int | None) -> list[str]:
    """How to start a command on core `cpu` alone."""
    return [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
