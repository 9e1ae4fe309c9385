"""A process that takes its turn at the start gate and says when: `-m tests.fakes.gate_process`.

Arguments: directory, variant, need in bytes, seconds to hold the turn, and `fork` to have a child
that outlives it. Prints `waiting`, `held <monotonic seconds>` and `released <monotonic seconds>`.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from serve_app.node.gate import GateTimes, StartGate, StartNeed
from tests.fakes.devices import FakeDevice

TIMES = GateTimes(settle_s=0.5, poll_s=0.02)


def say(*words: object) -> None:
    print(*words, flush=True)


async def main(directory: str, variant: str, need: str, hold_s: str, *forks: str) -> None:
    gate = StartGate(Path(directory), TIMES)
    say("waiting")
    async with gate.turn(StartNeed(variant, int(need)), [FakeDevice(total=1000, free=1000)]):
        if forks and os.fork() == 0:
            signal.pause()
        say("held", time.monotonic())
        await asyncio.sleep(float(hold_s))
        say("released", time.monotonic())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
