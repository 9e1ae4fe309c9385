"""Start, watch and kill engine processes from a scenario."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from serve_app.node.processes import process_tree
from serve_app.serving.ports import free_port
from tests.gpu.machine import Machine, Variant

ROOT = Path(__file__).parents[2]
READY_S = 300.0


@dataclass(frozen=True)
class Stage:
    """Where scenarios play: a device, a directory for the gate, a process that forks engines."""

    machine: Machine
    directory: Path
    forker: "subprocess.Popen[str]"

    def start(self, variant: Variant) -> "EngineProcess":
        """One more engine; it is waiting for its turn, at most."""
        return EngineProcess(variant, self)


@contextmanager
def open_stage(machine: Machine, directory: Path) -> Iterator[Stage]:
    """A stage whose engines are all ended with it."""
    command = [sys.executable, "-m", "tests.gpu.engine_process", "0" if machine.is_gpu else "1"]
    with (directory / "forker.log").open("wb") as log:
        forker = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield Stage(machine, directory, forker)
    finally:
        forker.kill()
        forker.communicate()


class EngineProcess:
    """One engine behind HTTP, as a replica would hold it."""

    def __init__(self, variant: Variant, stage: Stage) -> None:
        self.variant = variant
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        scratch = stage.directory / f"{variant.name}-{port}"
        scratch.mkdir(exist_ok=True)
        self._events, self._log = scratch / "events.jsonl", scratch / "log"
        self._events.unlink(missing_ok=True)
        spec = {
            "kind": stage.machine.kind,
            "name": variant.name,
            "folder": str(variant.folder),
            "settings": variant.settings.model_dump(mode="json"),
            "need_bytes": variant.plan.need_bytes,
            "directory": str(stage.directory),
            "events": str(self._events),
            "log": str(self._log),
            "port": port,
        }
        file = scratch / "spec.json"
        file.write_text(json.dumps(spec))
        assert stage.forker.stdin and stage.forker.stdout
        stage.forker.stdin.write(f"{file}\n")
        stage.forker.stdin.flush()
        answer = stage.forker.stdout.readline()
        assert answer, (stage.directory / "forker.log").read_text(errors="replace")[-2000:]
        self._process = psutil.Process(int(answer))
        self._seen: set[psutil.Process] = {self._process}

    def when(self, event: str) -> float | None:
        """Monotonic seconds of the event; None if it has not happened."""
        for line in self._lines():
            if line["event"] == event:
                return float(line["s"])
        return None

    def pids(self) -> list[int]:
        """The replica and its engine's processes that run now."""
        for pid in process_tree(self._process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.add(psutil.Process(pid))
        return [process.pid for process in self._seen if process.is_running()]

    def wait_until_serving(self) -> None:
        """Fails with the end of the log if the engine does not answer in time."""
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            assert _runs(self._process), f"{self.variant.name} ended:\n{self._tail()}"
            if self.when("ready") is not None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{self.base_url}/v1/models", timeout=5).is_success:
                        self.pids()
                        return
            time.sleep(0.1)
        raise AssertionError(f"{self.variant.name} is not ready in {READY_S:g} s:\n{self._tail()}")

    def kill(self) -> None:
        """SIGKILL to the replica alone, as the kernel's out-of-memory killer would."""
        self.pids()
        self._process.kill()

    def end(self) -> None:
        """Whatever is left of the session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def all_gone(self) -> bool:
        """Whether every process that was ever seen of it has ended."""
        return not any(_runs(process) for process in self._seen)

    def _lines(self) -> Iterator[dict[str, object]]:
        if self._events.exists():
            for line in self._events.read_text().splitlines():
                yield json.loads(line)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])


@contextmanager
def running(variants: list[Variant], stage: Stage) -> Iterator[list[EngineProcess]]:
    """All of them, started at once and serving; ended afterwards."""
    engines = [stage.start(variant) for variant in variants]
    try:
        for engine in engines:
            engine.wait_until_serving()
        yield engines
    finally:
        for engine in engines:
            engine.end()


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until the condition held."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start_s


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
