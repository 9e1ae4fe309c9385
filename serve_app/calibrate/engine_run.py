"""Boot one engine alone, in a session of its own, and read what it takes of its devices."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import EngineError
from serve_app.node.devices import DeviceMemory
from serve_app.node.processes import process_tree
from serve_app.planning.footprint import EngineSizes

TIMEOUT_S = 900.0
"""Loading, compiling and capturing a large model takes minutes."""
END_S = 60.0
POLL_S = 0.2
LOG_LINES = 25


@dataclass(frozen=True)
class EngineRun:
    """A measured engine: vLLM's version, its sizes, each rank's own report, and what its processes
    held on each device by the device's word."""

    vllm: str
    sizes: EngineSizes
    ranks: tuple[dict[str, Any], ...]
    held_bytes: dict[str, int]


def run_engine(
    folder: Path, settings: EngineSettings, devices: Sequence[DeviceMemory]
) -> EngineRun:
    """Boot the engine, give it a full batch, read its memory, and end it.

    Where a device does not tell processes apart, what it lost since before the start counts: so
    nothing else may use it. Raises EngineError if the engine does not start within `TIMEOUT_S`.
    """
    free_before = {device.key: device.free_bytes() for device in devices}
    with tempfile.TemporaryDirectory(prefix="quantile-calibrate-") as scratch:
        out, log = Path(scratch) / "answer.json", Path(scratch) / "log"
        command = [sys.executable, "-m", "serve_app.engines.vllm_calibrate", str(out)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            task = {"folder": str(folder), "settings": settings.model_dump(mode="json")}
            with contextlib.suppress(BrokenPipeError):  # it ended: its log says why
                process.stdin.write(f"{json.dumps(task)}\n".encode())
                process.stdin.flush()
            answer = _wait_for_answer(out, process, log, folder)
            pids = process_tree(process.pid)
            held = {device.key: _held(device, pids, free_before[device.key]) for device in devices}
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        finally:
            _end_session(process)
    return EngineRun(answer["vllm"], EngineSizes(**answer["sizes"]), tuple(answer["ranks"]), held)


def _held(device: DeviceMemory, pids: list[int], free_before: int) -> int:
    told = device.used_by(pids)
    return free_before - device.free_bytes() if told is None else told


def _wait_for_answer(
    out: Path, process: "subprocess.Popen[bytes]", log: Path, folder: Path
) -> dict[str, Any]:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not out.exists():
        code = process.poll()
        if code is not None or time.monotonic() > deadline_s:
            lines = log.read_text(errors="replace").splitlines()
            causes = [line for line in lines if re.search(r"\w(Error|Exception): ", line)]
            shown = "\n".join(causes[:3] or lines[-LOG_LINES:])
            how = f"took over {TIMEOUT_S:g} s" if code is None else f"ended with exit code {code}"
            raise EngineError(f"the engine on {folder} {how} before it could be measured:\n{shown}")
        time.sleep(POLL_S)
    answer: dict[str, Any] = json.loads(out.read_text())
    return answer


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
