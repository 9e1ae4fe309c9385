"""When to try again: exponential back-off with full jitter, so that clients do not come in step.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from serve_app.domain.errors import UnreachableError

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """`attempts` failures in a row, none of which brought a byte, are the end."""

    attempts: int = 8
    first_s: float = 0.5
    longest_s: float = 20.0

    def pause_s(self, failures: int, rng: Random) -> float | None:
        """Seconds to wait after so many failures in a row (at least one); None to give up."""
        if failures >= self.attempts:
            return None
        return rng.uniform(0, min(self.longest_s, self.first_s * 2 ** (failures - 1)))


def persist(
    call: Callable[[], T],
    backoff: Backoff,
    rng: Random | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `call` returns, as soon as it does not raise UnreachableError; that, in the end."""
    rng = rng or Random()
    failures = 0
    while True:
        try:
            return call()
        except UnreachableError:
            failures += 1
            pause_s = backoff.pause_s(failures, rng)
            if pause_s is None:
                raise
            sleep(pause_s)
