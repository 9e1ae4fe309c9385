"""Worker processes on this machine, which end when the one that started them does."""

import os
import subprocess
import sys
import time
from functools import partial

from loadtests.drive.lifeline import never_outlive

LEAVE_S = 3.0


class LocalWorkers:
    """`n` processes that serve the master at `address` (HOST:PORT), with its API key."""

    def __init__(self, n: int, address: str, api_key_env: str | None = None) -> None:
        self._command = [sys.executable, "-m", "loadtests.drive.worker", "--master", address]
        self._command += [] if api_key_env is None else ["--api-key-env", api_key_env]
        self._n = n
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start them."""
        for _ in range(self._n):
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # our stdout carries progress
                start_new_session=True,  # Ctrl-C is for us, who tell them to stop
                preexec_fn=partial(never_outlive, os.getpid()),
            )
            self._processes.append(process)

    def ended(self) -> dict[int, int]:
        """Exit status by process id of those that are over."""
        polled = {process.pid: process.poll() for process in self._processes}
        return {pid: status for pid, status in polled.items() if status is not None}

    def leave(self) -> None:
        """Wait until they are gone, and end those that stay."""
        deadline_s = time.monotonic() + LEAVE_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
