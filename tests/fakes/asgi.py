"""An ASGI client in process: one request, and everything that the application sends."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

from serve_app.engines.engine import ASGIApp, Message

Pairs = Iterable[tuple[str, str]]


class Exchange:
    """One request to `app`. `pieces` are the body's messages; `hang_up()` makes the client leave.

    With `hangs_up_in_body` the client leaves after those pieces, before its body is whole.
    """

    def __init__(
        self,
        app: ASGIApp,
        method: str,
        path: str,
        body: object = b"",
        headers: Pairs = (),
        *,
        pieces: Sequence[bytes] | None = None,
        hangs_up_in_body: bool = False,
        **scope: Any,
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.messages: list[Message] = []
        self.n_received = 0
        self.n_received_at_answer = 0
        """Messages that the application had taken when its answer began."""
        self.hung_up = asyncio.Event()
        self.more = asyncio.Event()
        self._app = app
        self._pieces = [raw] if pieces is None else list(pieces)
        self._hangs_up_in_body = hangs_up_in_body
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [
                (name.lower().encode(), value.encode("latin-1")) for name, value in headers
            ],
            **scope,
        }

    async def receive(self) -> Message:
        self.n_received += 1
        if self._pieces:
            piece = self._pieces.pop(0)
            more = bool(self._pieces) or self._hangs_up_in_body
            return {"type": "http.request", "body": piece, "more_body": more}
        if not self._hangs_up_in_body:
            await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        assert message["type"] == ("http.response.body" if self.messages else "http.response.start")
        assert not self.over, "a message after the answer's end"
        if not self.messages:
            self.n_received_at_answer = self.n_received
        self.messages.append(message)
        self.more.set()

    async def __call__(self) -> "Exchange":
        await self._app(self.scope, self.receive, self.send)
        return self

    def start(self) -> "asyncio.Task[Exchange]":
        return asyncio.ensure_future(self())

    async def sent(self, n_messages: int) -> None:
        """Wait until the application has sent so many messages."""
        while len(self.messages) < n_messages:
            self.more.clear()
            await self.more.wait()

    @property
    def over(self) -> bool:
        """Whether the answer has been sent to its end."""
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        """Every header of the answer; a name that comes twice is an error."""
        pairs = [(name.decode(), value.decode()) for name, value in self.messages[0]["headers"]]
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def route(self) -> tuple[str, str]:
        """`x-variant` and `x-route-reason`."""
        return self.headers["x-variant"], self.headers["x-route-reason"]
