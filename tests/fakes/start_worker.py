"""What a replica is to the start gate, without Ray: `python -m tests.fakes.start_worker`.

Reads commands from its standard input, one JSON object a line: `start` (with a variant's arguments,
the moment to start at, and whether through the gate) and `stop`. Answers with events on its
standard output, each with the time on the machine's monotonic clock; logs go to standard error.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from serve_app.config.schema import EngineSettings, VariantArgs
from serve_app.engines.engine import Engine, EngineSpec, prepare_engine, start_engine
from serve_app.reference.locate import resolve
from serve_app.serving import start
from serve_app.store.facts import checkpoint_facts


class Worker:
    def __init__(self, output_fd: int) -> None:
        self._output_fd = output_fd
        self._held: dict[str, int] = {}

    def say(self, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, "at_s": time.monotonic(), **more})
        os.write(self._output_fd, f"{line}\n".encode())

    async def timed_start(self, spec: EngineSpec) -> Engine:
        self.say("begin")
        engine = await start_engine(spec)
        self.say("end")
        return engine

    def planned(self, device: str, n_bytes: int) -> None:
        self._held["planned"] = n_bytes

    def total(self, device: str, n_bytes: int) -> None:
        """Not asked for."""

    def held(self, device: str, n_bytes: int, source: str) -> None:
        self._held["held"] = n_bytes

    async def start(self, command: dict[str, Any]) -> Engine:
        args = VariantArgs(**command["args"])
        folder = resolve(args.checkpoint)
        facts = checkpoint_facts(str(folder))
        spec = EngineSpec((args.model,), folder, args.engine)
        await asyncio.sleep(command["at_s"] - time.monotonic())
        if command["gated"]:
            engine, watch = await start.start_in_turn(args, spec, facts, self)
            watch.sample()
        else:
            engine = await self.timed_start(spec)
        await engine.check_health()
        self.say("ready", **self._held)
        return engine

    async def run(self) -> None:
        start.start_engine = self.timed_start
        folder = resolve("reference://baseline")
        prepare_engine(EngineSpec(("m",), folder, EngineSettings(threads=1)))
        self.say("loaded")
        engine: Engine | None = None
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            if command["do"] == "start":
                try:
                    engine = await self.start(command)
                except Exception as error:
                    self.say("failed", why=repr(error))
            elif engine is not None:
                await engine.shutdown()
                engine = None
                self.say("stopped")


if __name__ == "__main__":
    output_fd = os.dup(1)
    os.dup2(2, 1)  # what vLLM prints must not mix with the events
    asyncio.run(Worker(output_fd).run())
