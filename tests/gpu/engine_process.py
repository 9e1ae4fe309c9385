"""Replicas without Ray: each takes its turn at the start gate, starts its engine and serves it.

`python -m tests.gpu.engine_process <threads>` imports vLLM once, then forks one replica for each
path of a spec on its standard input and answers with its PID: importing takes longer than starting.
A replica appends what happens to the spec's `events`, with the machine's monotonic clock.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import uvicorn

from serve_app.config.schema import EngineSettings
from serve_app.engines.engine import EngineSpec, start_engine
from serve_app.engines.vllm_engine import prepare_environment
from serve_app.node.gate import GateTimes, StartGate, StartNeed
from serve_app.node.host import HostMemory
from serve_app.node.nvml import assigned_gpus
from serve_app.node.registry import announce_owner


async def run(spec: dict[str, Any]) -> None:
    def event(name: str, **more: object) -> None:
        with Path(spec["events"]).open("a") as file:
            file.write(json.dumps({"event": name, "s": time.monotonic(), **more}) + "\n")

    settings = EngineSettings.model_validate(spec["settings"])
    device = HostMemory() if spec["kind"] == "host" else assigned_gpus(1)[0]
    directory, name, need = Path(spec["directory"]), spec["name"], spec["need_bytes"]
    announce_owner(name, (device.key,), need, directory)
    event("waits")
    gate = StartGate(directory, GateTimes(settle_s=0.5))
    async with gate.turn(StartNeed(name, need), [device]) as free:
        event("turn", free_bytes=free[device.key])
        engine = await start_engine(EngineSpec((name,), Path(spec["folder"]), settings))
        event("ready")
    config = uvicorn.Config(engine.app, port=spec["port"], log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    try:
        await server.serve()
    finally:
        await engine.shutdown()


def replica(spec: dict[str, Any]) -> None:
    """In the forked child: a session and a log of its own, then the engine; never returns."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    code = 1
    try:
        asyncio.run(run(spec))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap(*_: object) -> None:
    """Take note of ended replicas: what is not waited for stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    threads = int(sys.argv[1])
    prepare_environment(threads or None)
    import vllm.entrypoints.launchers.api_server.entry  # noqa: F401 - what a start imports

    import serve_app.engines.vllm_args  # noqa: F401

    signal.signal(signal.SIGCHLD, reap)
    for line in iter(sys.stdin.readline, ""):
        spec = json.loads(Path(line.strip()).read_text())
        pid = os.fork()
        if not pid:
            replica(spec)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
