"""The console on the router: its page, its events, and with an admin key the split.

Keys travel in `authorization` alone: there is no cookie that another site's page could use.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from serve_app.config.tenants import ANONYMOUS
from serve_app.console.pages import page_at
from serve_app.domain.errors import (
    InvalidKeyError,
    MalformedRequestError,
    NotAllowedError,
    UnknownPathError,
)
from serve_app.domain.text import shown
from serve_app.domain.traffic import AliasRules
from serve_app.engines.engine import Receive, Scope, Send
from serve_app.serving.admission_ticket import Principal
from serve_app.serving.console_feed import Feed
from serve_app.serving.console_reports import Reports
from serve_app.serving.console_split import SplitChanger, StoreOf, parse_change, serve_api_of
from serve_app.serving.http import Headers, header, read_body, require_method, send_json

CONSOLE = "/console"
STREAM_S = 300.0
"""How long one stream lasts before the page asks anew: a key that was taken back ends with it."""
_EVENTS, _STATE, _WHO, _SPLIT = (
    f"{CONSOLE}/{name}" for name in ("events", "state", "who", "split")
)
_MAX_BODY_BYTES = 64 * 1024
_GOODBYE_S = 5.0
_JSON = "application/json"
_OWN_SITE = (None, "same-origin", "none")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]
_NO_STORE = (b"cache-control", b"no-store")


class Router(Protocol):
    """What the console asks of the router."""

    def identify(self, scope: Scope) -> Principal:
        """Who asks. Raises InvalidKeyError, HeadersTooLargeError."""

    def rules(self) -> dict[str, AliasRules]:
        """The rules by public name. Raises VariantUnavailableError."""


class Console:
    """Answers what is at and below `/console`. Make it in the loop that serves requests.

    `look` makes the snapshot; it is asked each second while somebody watches, however many do.
    """

    def __init__(
        self,
        router: Router,
        look: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        clock: Callable[[], float],
        *,
        store_of: StoreOf | None = None,
        environ: Mapping[str, str] = os.environ,
        stream_s: float = STREAM_S,
    ) -> None:
        self._router = router
        self._look = look
        self._clock = clock
        self._reports = Reports(environ)
        self._changer = SplitChanger(store_of or serve_api_of(environ))
        self._stream_s = stream_s
        self.feed = Feed(self._snapshot)

    def close(self) -> None:
        """End every stream."""
        self.feed.close()

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, started: str, marks: Headers
    ) -> None:
        """Answer one request; `started` is set in the scope once there is no other answer.

        Raises the errors of `QuantileError`.
        """
        path = scope["path"]
        require_method(scope["method"], "POST" if path == _SPLIT else "GET", path)
        page = page_at(path)
        if page is not None:
            await _send_whole(send, page.body, [*page.headers, *marks])
        elif path == _EVENTS:
            await self._events(scope, receive, send, started, marks)
        elif path == _STATE:
            self._router.identify(scope)
            extra = [(b"content-type", _JSON.encode()), _NO_STORE, *marks]
            await _send_whole(send, await self._snapshot(), extra)
        elif path == _WHO:
            who = self._router.identify(scope)
            body = {"tenant": who.name, "admin": who.is_admin}
            await send_json(send, 200, body, [_NO_STORE, *marks])
        elif path == _SPLIT:
            await self._change(scope, receive, send, marks)
        else:
            raise UnknownPathError(f"there is no {shown(path)} in the console")

    async def _snapshot(self) -> bytes:
        state = await self._look(await self._reports.known(self._clock()))
        if state["router"]["draining"]:
            self.feed.close()  # a stream would keep the replica from ending
        return msgspec.json.encode(state)

    async def _events(
        self, scope: Scope, receive: Receive, send: Send, started: str, marks: Headers
    ) -> None:
        self._router.identify(scope)
        with self.feed.watching() as snapshots:
            headers = [*_STREAM_HEADERS, *marks]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            scope[started] = True
            stream = asyncio.create_task(_stream(send, snapshots), name="console stream")
            gone = asyncio.create_task(_gone(receive), name="console watcher")
            try:
                done, _ = await asyncio.wait(
                    {stream, gone}, timeout=self._stream_s, return_when=asyncio.FIRST_COMPLETED
                )
                is_there = all(task is stream and task.exception() is None for task in done)
            finally:
                for task in (stream, gone):
                    task.cancel()
                await asyncio.wait({stream, gone})
        if is_there:
            with contextlib.suppress(TimeoutError):  # it does not read: nothing more to be said
                async with asyncio.timeout(_GOODBYE_S):
                    await send({"type": "http.response.body", "body": b""})

    async def _change(self, scope: Scope, receive: Receive, send: Send, marks: Headers) -> None:
        who = self._admin(scope)
        headers = scope["headers"]
        if header(headers, b"sec-fetch-site") not in _OWN_SITE:
            raise NotAllowedError("another site's page may not change the split")
        content_type = (header(headers, b"content-type") or "").partition(";")[0].strip()
        if content_type.lower() != _JSON:
            raise MalformedRequestError(f"the content type is {_JSON}, have {shown(content_type)}")
        body = await read_body(scope, receive, _MAX_BODY_BYTES)
        changed = await self._changer.change(parse_change(body, self._router.rules()), who.name)
        await send_json(send, 200, changed, [_NO_STORE, *marks])

    def _admin(self, scope: Scope) -> Principal:
        """Raises InvalidKeyError without a key, NotAllowedError with one that may not."""
        who = self._router.identify(scope)
        if who.is_admin:
            return who
        need = "changing the split takes the API key of a tenant with `admin: true`"
        if who.name != ANONYMOUS:
            raise NotAllowedError(f"{need}, which {who.name} is not; `quantile keys` says how")
        if header(scope["headers"], b"authorization") is None:
            raise InvalidKeyError(f"{need}; send `authorization: Bearer <API key>`")
        raise NotAllowedError(f"{need}; this router has no file of keys: set admission.keys_file")


async def _stream(send: Send, snapshots: Any) -> None:
    async for snapshot in snapshots:
        event = b"data: " + snapshot + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_whole(send: Send, body: bytes, headers: Headers) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
