"""Find out that Serve stops this router replica, and end what is still under way in time.

Serve tells a replica's code of its end only after the last answer, or not at all: it stops sending
requests, waits, and at `graceful_shutdown_timeout_s` kills the process, which cuts streams without
a word. But it tells load balancers: the replica's `/-/healthz` answers 503 `DRAINING` from the
first moment. So the replica asks itself, at the port on which its requests come.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve_app.engines.engine import Scope
from serve_app.serving.limits import AnswerLimits
from serve_app.serving.upstream import (
    UpstreamPool,
    UpstreamTruncatedError,
    UpstreamUnreachableError,
)

INTERVAL_S = 1.0
_TIMEOUT_S = 5.0
_PATH = "/-/healthz"
_DRAINING = b"DRAINING"

logger = logging.getLogger("ray.serve")


class Drain:
    """Watches for the end of this replica, and stops `limits` when `after_s` have passed since."""

    def __init__(
        self,
        limits: AnswerLimits,
        *,
        interval_s: float = INTERVAL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.after_s: float | None = None
        self.is_draining = False
        self._limits = limits
        self._interval_s = interval_s
        self._sleep = sleep
        self._watch: asyncio.Task[None] | None = None

    def seen(self, scope: Scope) -> None:
        """A request came, and with it the port to ask at; the first one starts the watch."""
        if self._watch is None and self.after_s is not None:
            server = scope.get("server")
            if server is not None and server[1]:
                watching = self._look(str(server[0]), int(server[1]))
                self._watch = asyncio.create_task(watching, name="drain")

    def close(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _look(self, host: str, port: int) -> None:
        pool = UpstreamPool(host, port)
        request = f"GET {_PATH} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode("latin-1")
        try:
            while not await _is_draining(pool, request):
                await self._sleep(self._interval_s)
            self.is_draining = True
            while self.after_s is None:  # turned off meanwhile; it may be turned on again
                await self._sleep(self._interval_s)
            await self._sleep(self.after_s)
        finally:
            pool.close()
        n_ended = self._limits.stop()
        logger.warning(
            "the replica ends: %d answers still under way after %.0f s were ended with an error "
            "(resilience.drain_s)",
            n_ended,
            self.after_s,
        )


async def _is_draining(pool: UpstreamPool, request: bytes) -> bool:
    """Whether Serve says so. No answer says nothing: the listener closes while requests go on."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await pool.request(request)
            try:
                body = b""
                while piece := await answer.read():
                    body += piece
            except BaseException:
                answer.close()
                raise
            status = answer.status
            answer.release()
    except (UpstreamUnreachableError, UpstreamTruncatedError, TimeoutError):
        return False
    return status == 503 and body.strip(b'"\n') == _DRAINING
