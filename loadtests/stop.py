"""How signals end a run without costing its report."""

import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

STOP_GRACE_S = 20.0
"""Time for the load processes to record what is in flight and to leave."""


class Stop:
    """Ctrl-C, SIGTERM and SIGHUP while a run is on: the first ends the load, the second does so at
    once, and neither costs the report. From the third on they do what they did before.

    A signal that is ignored, as under nohup, or ends this process by itself is left alone.
    """

    def __init__(self) -> None:
        self.heard: list[signal.Signals] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._too_long: threading.Timer | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._too_long is not None:
            self._too_long.cancel()

    def ends(self, process: "subprocess.Popen[bytes]") -> None:
        """Let it be `process` that is ended, now if a signal was there before it."""
        self._process = process
        if self.heard:
            self._end(process)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """No output here: it may have been another output that was interrupted."""
        self.heard.append(signal.Signals(number))
        if len(self.heard) > 2:
            self._before[number](number, frame)
        elif self._process is not None:
            self._end(self._process)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        if len(self.heard) > 1:
            process.kill()
            return
        process.terminate()
        self._too_long = threading.Timer(STOP_GRACE_S, process.kill)
        self._too_long.daemon = True
        self._too_long.start()
