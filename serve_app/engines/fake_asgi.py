"""ASGI plumbing of the fake engine: bodies, pieces, lifespan, and a client that leaves."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from serve_app.engines.fake_script import SlowBody

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]


async def read_body(receive: Receive) -> bytes | None:
    """The request's body; None if the client left before it was complete."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def start(send: Send, status: int, content_type: bytes, length: int | None) -> None:
    """Send status and headers; `length` None leaves the body's length open (chunked)."""
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def respond(
    send: Send, status: int, body: bytes, content_type: bytes = b"application/json"
) -> None:
    """Send a whole response."""
    await start(send, status, content_type, len(body))
    await send({"type": "http.response.body", "body": body})


async def send_event(send: Send, event: bytes) -> None:
    """Send one piece of a body that goes on."""
    await send({"type": "http.response.body", "body": event, "more_body": True})


async def until_disconnect(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Run `work` to its end (True), or cancel it when the client leaves (False).

    A cancellation from outside goes on as CancelledError, as do the errors of `work`.
    """
    task = asyncio.current_task()
    client_left = False

    async def watch() -> None:
        nonlocal client_left
        while (await receive())["type"] != "http.disconnect":
            pass
        client_left = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not client_left or task is None or task.uncancel() > 0:
            raise
        return False
    finally:
        watcher.cancel()
    return True


def slowed(send: Send, slow: SlowBody, sleep: Sleep) -> Send:
    """A `send` that cuts bodies into pieces, a pause before each."""

    async def send_in_pieces(message: Message) -> None:
        body = message.get("body", b"")
        if not body:
            await send(message)
            return
        for offset in range(0, len(body), slow.piece_bytes):
            await sleep(slow.delay_ms / 1000)
            is_last = offset + slow.piece_bytes >= len(body)
            piece = body[offset : offset + slow.piece_bytes]
            more = message.get("more_body", False) or not is_last
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    return send_in_pieces


async def lifespan(receive: Receive, send: Send) -> None:
    """Answer the server's start-up and shutdown; there is nothing to start."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
