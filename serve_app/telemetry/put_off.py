"""Metrics of requests, recorded in a row a moment later and not on a request's way.

Ray's metrics run through code that nothing else of the router uses. In a row a record costs a few
microseconds; alone, between requests, many times that, since it finds none of itself in the
processor's caches (decision 0027).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping

AFTER_S = 1.0
"""Ray's workers report every ten seconds."""
AT_ONCE = 50
"""Records before requests have their turn: well under a millisecond."""
NO_TAGS: Mapping[str, str] = {}

Record = Callable[..., None]

logger = logging.getLogger("ray.serve")


class PutOff:
    """Takes records in the loop that serves requests, and makes them within about a second."""

    def __init__(self, after_s: float = AFTER_S) -> None:
        self._after_s = after_s
        self._waiting: deque[tuple[Record, float, Mapping[str, str]]] = deque()
        self._has_failed = False

    def add(self, record: Record, value: float, tags: Mapping[str, str] = NO_TAGS) -> None:
        """`record(value, tags=tags)`, later: `inc` of a counter, or `observe` of a histogram."""
        self._waiting.append((record, value, tags))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(self._after_s, self._some)

    def flush(self) -> None:
        """Make all that wait now."""
        while self._waiting:
            self._one()

    def _some(self) -> None:
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._one()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._some)

    def _one(self) -> None:
        record, value, tags = self._waiting.popleft()
        try:
            record(value, tags=tags)
        except Exception:
            if not self._has_failed:
                logger.exception("a metric was refused; later ones are not told of")
            self._has_failed = True
