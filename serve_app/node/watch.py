"""While an engine runs: what it holds against what was planned, as metrics and one warning."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from serve_app.domain.errors import EngineError
from serve_app.domain.units import format_bytes
from serve_app.node.devices import DeviceMemory
from serve_app.node.gate import StartNeed
from serve_app.node.processes import process_tree

EVERY_S = 10.0

CALM_SHARE = 0.98
"""Of the plan: an engine must fall below it before a new excess is a new episode."""

BY_PIDS = "pids"
"""Measured now, for the replica's own processes."""
BY_START = "start"
"""What the device lost while the engine started alone, where it does not tell processes apart."""

logger = logging.getLogger("ray.serve")


class MemoryMetrics(Protocol):
    """Told at every sample; must be cheap and must not raise."""

    def planned(self, device: str, n_bytes: int) -> None:
        """What the engine may hold on the device."""

    def total(self, device: str, n_bytes: int) -> None:
        """All that the device has."""

    def held(self, device: str, n_bytes: int, source: str) -> None:
        """What it holds; `source` is `pids` or `start`. Not called where nobody can tell."""


class MemoryWatch:
    """Samples one engine's memory on its devices until it is cancelled."""

    def __init__(
        self,
        need: StartNeed,
        devices: Sequence[DeviceMemory],
        metrics: MemoryMetrics,
        taken_at_start: Mapping[str, int],
        pids: Callable[[], list[int]] = lambda: process_tree(os.getpid()),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._need = need
        self._devices = devices
        self._metrics = metrics
        self._taken_at_start = taken_at_start
        self._pids = pids
        self._sleep = sleep
        self._told: set[tuple[str, str]] = set()

    def start(self) -> asyncio.Task[None]:
        """`run` as a task to be cancelled; what else ends it is logged."""
        task = asyncio.create_task(self.run())
        task.add_done_callback(_log_failure)
        return task

    async def run(self) -> None:
        """Sample every 10 s; a device that cannot be asked is told once and asked again."""
        while True:
            await asyncio.to_thread(self.sample)
            await self._sleep(EVERY_S)

    def sample(self) -> None:
        """Set the gauges, and warn at the start of each episode of excess."""
        pids = self._pids()
        for device in self._devices:
            try:
                held = device.used_by(pids)
            except EngineError as error:
                self._tell_once(device.key, "failed", f"the memory watch sees nothing: {error}")
                continue
            self._told.discard((device.key, "failed"))
            self._metrics.planned(device.key, self._need.need_bytes)
            self._metrics.total(device.key, device.total_bytes())
            if held is None:
                self._unattributed(device.key)
            else:
                self._metrics.held(device.key, held, BY_PIDS)
                self._compare(device.key, held)

    def _unattributed(self, key: str) -> None:
        self._tell_once(
            key,
            "unattributed",
            f"{key} does not tell which process holds what (a container with PIDs of its own?): "
            f"the figure for variant {self._need.variant} is what the device lost at its start",
        )
        if (taken := self._taken_at_start.get(key)) is not None:
            self._metrics.held(key, taken, BY_START)
            self._compare(key, taken)

    def _compare(self, key: str, held: int) -> None:
        plan = self._need.need_bytes
        if held > plan:
            self._tell_once(
                key,
                "excess",
                f"variant {self._need.variant} holds {format_bytes(held)} on {key}, its plan is "
                f"{format_bytes(plan)}: its neighbours may run out of memory. Lower "
                "max_num_batched_tokens, max_num_seqs or max_cudagraph_capture_size, or plan again "
                f"with {format_bytes(held - plan)} more (`quantile plan`)",
            )
        elif held < CALM_SHARE * plan:
            self._told.discard((key, "excess"))

    def _tell_once(self, key: str, topic: str, message: str) -> None:
        if (key, topic) not in self._told:
            self._told.add((key, topic))
            logger.warning(message)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("the memory watch ended", exc_info=error)
