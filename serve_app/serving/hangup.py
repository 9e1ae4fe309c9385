"""Tell an application that its client is gone by the message that ASGI has for it.

Ray Serve cancels the task of a request whose client left. vLLM's handlers do not pass a
cancellation on to the task that generates: they listen for `http.disconnect` (its
`with_cancellation` decorator). Cancelled outright, a request without a stream would generate to its
end for nobody. So the application runs in a task of its own and hears the message.
"""

import asyncio
import contextlib
from typing import Any

from serve_app.engines.engine import ASGIApp, Message, Receive, Scope, Send

GRACE_S = 5.0
_DISCONNECT = {"type": "http.disconnect"}


async def serve_until_hangup(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, grace_s: float = GRACE_S
) -> None:
    """Run `app`; when cancelled, let it hear `http.disconnect`, and end it after a grace."""
    hangup: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive_or_hangup() -> Message:
        message: asyncio.Future[Message] = asyncio.ensure_future(receive())
        waited: set[asyncio.Future[Any]] = {message, hangup}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else dict(_DISCONNECT)
        finally:
            message.cancel()  # also when the application stops listening

    work = asyncio.create_task(_run(app, scope, receive_or_hangup, send))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        hangup.set_result(None)
        try:
            await asyncio.wait({work}, timeout=grace_s)
        finally:
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await work
        raise
    finally:
        hangup.cancel()


async def _run(app: ASGIApp, *args: Any) -> None:
    await app(*args)
