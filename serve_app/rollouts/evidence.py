"""Where evidence comes from, as the controller sees it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve_app.rollout.observations import LATENCIES, Look, Pairs


@dataclass(frozen=True)
class Clock:
    """Seconds of a monotonic clock, and how to wait."""

    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


class Evidence(Protocol):
    """One source. Only `take` may raise: ConfigError where asking again changes nothing."""

    look_s: float
    """How often it is worth asking."""

    async def begin(self) -> None:
        """What is seen from now on counts: the split has just been changed, or found."""

    async def take(self) -> Look:
        """What is new since the last time, or since `begin`; may be nothing."""

    @property
    def is_exhausted(self) -> bool:
        """Whether there will be nothing more."""

    @property
    def mark(self) -> int:
        """How far it has been read, to go on from after a restart."""

    @property
    def trouble(self) -> str | None:
        """What keeps it from seeing, in one line; None where nothing does."""

    async def close(self) -> None:
        """End what it does in the background."""


def together(looks: list[Look]) -> Look:
    """What several sources saw, as one look."""
    parts = [look.pairs for look in looks if len(look.pairs)]
    windows = tuple(window for look in looks for window in look.windows)
    if not parts:
        return Look(windows=windows)
    pairs = Pairs(
        ok=np.concatenate([part.ok for part in parts]),
        latencies_s={
            name: np.concatenate([part.latencies_s[name] for part in parts]) for name in LATENCIES
        },
        wrong=np.concatenate([part.wrong for part in parts]),
        disagrees=np.concatenate([part.disagrees for part in parts]),
        floor_disagrees=np.concatenate([part.floor_disagrees for part in parts]),
    )
    return Look(pairs=pairs, windows=windows)
