"""How things stand in one router replica, told to its metrics again and again."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from serve_app.routing.breaker import BreakerState
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.served_alias import ServedAlias
from serve_app.telemetry.metrics import RouterMetrics

EVERY_S = 5.0
"""Ray's worker hands on what was set since the last time, every ten seconds, and forgets it."""
READY, ASLEEP, DOWN = 1.0, 0.5, 0.0

logger = logging.getLogger("ray.serve")


def tell(
    metrics: RouterMetrics,
    variants: Iterable[str],
    directory: VariantDirectory,
    in_flight: Mapping[str, int],
    breakers: Mapping[str, BreakerState],
    aliases: Mapping[str, ServedAlias],
) -> None:
    """Tell of all that is there now. What is gone is not told, and so its series end."""
    for name in variants:
        asleep = ASLEEP if directory.is_asleep(name) else DOWN
        metrics.stands(
            name,
            ready=READY if directory.is_ready(name) else asleep,
            in_flight=in_flight.get(name, 0),
            breaker=breakers.get(name),
        )
    for name, served in aliases.items():
        metrics.split(name, served.rules.split.shares_bp)
        served.ladder.tell()


class Repeating:
    """Calls `tell` every few seconds, from `start` to `close`."""

    def __init__(self, tell: Callable[[], None], every_s: float = EVERY_S) -> None:
        self._tell = tell
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Call it in the loop that serves requests; again does nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="gauges")

    def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                self._tell()
            except Exception:
                logger.exception("the router's gauges could not be told; they are tried again")
            await asyncio.sleep(self._every_s)
