"""One snapshot per second for all who watch the console; none while nobody does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from serve_app.domain.errors import RateLimitError

EVERY_S = 1.0
MOST_WATCHERS = 32
_RETRY_S = 5.0

logger = logging.getLogger("ray.serve")


class Feed:
    """Tells its watchers the latest of what `look` returns. Make it in the loop that serves.

    A slow watcher misses snapshots, and holds up nobody. What `look` cannot tell is logged once and
    asked again.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[bytes]],
        *,
        every_s: float = EVERY_S,
        most: int = MOST_WATCHERS,
    ) -> None:
        self._look = look
        self._every_s = every_s
        self._most = most
        self._producer: asyncio.Task[None] | None = None
        self._latest: bytes | None = None
        self._next: asyncio.Future[None] | None = None
        self._is_closed = False
        self.n_watchers = 0

    @property
    def is_running(self) -> bool:
        """Whether snapshots are being made."""
        return self._producer is not None

    def close(self) -> None:
        """End every watcher."""
        self._is_closed = True
        self._stop()

    @contextmanager
    def watching(self) -> Iterator[AsyncIterator[bytes]]:
        """Snapshots as they are made, the latest at once. Raises RateLimitError when full."""
        if self.n_watchers >= self._most:
            error = RateLimitError(
                f"{self.n_watchers} watch the console on this router replica, which is the most; "
                "close one, or try again"
            )
            error.retry_after_s = _RETRY_S
            raise error
        self.n_watchers += 1
        if self._producer is None and not self._is_closed:
            self._next = asyncio.get_running_loop().create_future()
            self._producer = asyncio.create_task(self._produce(), name="console")
        try:
            yield self._snapshots()
        finally:
            self.n_watchers -= 1
            if not self.n_watchers:
                self._stop()

    async def _snapshots(self) -> AsyncIterator[bytes]:
        told: bytes | None = None
        while not self._is_closed:
            if self._latest is not None and self._latest is not told:
                told = self._latest
                yield told
            elif self._next is not None:
                await asyncio.wait({self._next})
            else:
                return

    async def _produce(self) -> None:
        failed = False
        while True:
            try:
                self._latest = await self._look()
                failed = False
            except Exception:
                if not failed:
                    logger.exception("the console's snapshot could not be made; it is tried again")
                failed = True
            self._wake(asyncio.get_running_loop().create_future())
            await asyncio.sleep(self._every_s)

    def _wake(self, following: asyncio.Future[None] | None) -> None:
        waited, self._next = self._next, following
        if waited is not None and not waited.done():
            waited.set_result(None)

    def _stop(self) -> None:
        if self._producer is not None:
            self._producer.cancel()
            self._producer = None
        self._latest = None
        self._wake(None)
