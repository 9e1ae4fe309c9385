"""What stands in front of an engine's application: who may ask, for what, and who answered.

Variants share the public ingress with the router. So each refuses requests without the internal
token, exposes an allow-list of paths (an engine's operational endpoints are never public), and
marks its answers: one without `x-variant` came from the ingress, not from the variant. A request
with `x-request-timeout-ms` ends in time, in the engine too.
"""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from serve_app.domain.checkpoint import VariantCard
from serve_app.domain.errors import (
    EngineError,
    MalformedRequestError,
    UnknownPathError,
    VariantUnavailableError,
)
from serve_app.engines.engine import Engine, Message, Receive, Scope, Send
from serve_app.serving.deadline import serve_within
from serve_app.serving.hangup import serve_until_hangup
from serve_app.serving.http import (
    CARD_PATH,
    ENGINE_HEADER,
    INTERNAL_TOKEN_HEADER,
    VARIANT_HEADER,
    asked_timeout_s,
    header,
    route_path,
    send_error,
    send_json,
)
from serve_app.telemetry.tracing import SPAN, RequestSpan, Spans

_DEAD = (ENGINE_HEADER, b"dead")
_PUBLIC_PREFIX = "/v1/"
_PUBLIC_PATHS = frozenset({"/tokenize", "/detokenize", "/health", "/metrics"})


class VariantFront:
    """The ASGI application of one variant's replica."""

    def __init__(
        self, engine: Engine, card: VariantCard, token: str, spans: Spans | None = None
    ) -> None:
        self._engine = engine
        self._spans = spans
        self._card = asdict(card)
        self._token = token.encode()
        self._mark = (VARIANT_HEADER, card.name.encode())
        self.served_total = 0
        """Requests given to the engine. Probes and reads of metrics are none: they would keep a
        variant awake."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the engine's application runs its own lifespan."""
        if scope["type"] == "lifespan":
            await self._engine.app(scope, receive, send)
            return
        path = route_path(scope)
        if not self._knows_token(scope) or not self._is_exposed(path):
            # One answer for both: without the token, nobody learns which paths exist.
            error = UnknownPathError(f"there is no {path} here; ask the router, at /v1")
            await send_error(send, error, [self._mark])
        elif not self._engine.alive:
            await self._say_dead(send)
        elif path == CARD_PATH:
            await send_json(send, 200, self._card, [self._mark])
        else:
            self.served_total += scope["method"] == "POST"
            await self._traced(scope, receive, send)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._spans is None or scope["method"] != "POST":
            await self._marked(scope, receive, send)
            return
        told = {
            "quantile.variant": self._card["name"],
            "quantile.method": self._card["method"],
            "quantile.engine": self._card["engine"],
        }
        with self._spans.request(scope, f"variant {self._card['name']}", told) as traced:
            span: RequestSpan | None = traced.get(SPAN)
            await self._marked(traced, receive, send if span is None else _told(send, span))

    async def _marked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve with the mark on the answer, or with a 503 where the engine dies before it begins.

        Raises EngineError where it dies later.
        """
        marked = _Marked(self._engine, self._mark, send, self._say_dead)
        try:
            await self._serve(scope, receive, marked)
        except Exception:
            if marked.has_begun or self._engine.alive:
                raise
            await marked.die()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            limit_s = asked_timeout_s(scope["headers"])
        except MalformedRequestError as error:
            await send_error(send, error)
            return
        if limit_s is None:
            await serve_until_hangup(self._engine.app, scope, receive, send)
        else:
            await serve_within(limit_s, self._engine.app, scope, receive, send)

    def _knows_token(self, scope: Scope) -> bool:
        given = header(scope["headers"], INTERNAL_TOKEN_HEADER)
        return given is not None and hmac.compare_digest(given.encode(), self._token)

    def _is_exposed(self, path: str) -> bool:
        return path.startswith(_PUBLIC_PREFIX) or path in _PUBLIC_PATHS or path == CARD_PATH

    async def _say_dead(self, send: Send) -> None:
        error = VariantUnavailableError(f"the engine of {self._card['name']} is dead")
        await send_error(send, error, [self._mark, _DEAD])


class _Marked:
    """Adds the mark to an answer, and keeps what a dead engine says from being taken for one.

    vLLM sends the head of a stream at once and, if its engine dies, an error as its first event: so
    the head waits for the first bytes of the body. It says the same in the middle of a stream and
    ends it in good order, with `[DONE]`, as if it were whole: so a stream whose engine has died is
    cut (EngineError), which the router sees, counts, and tells its client.
    """

    __slots__ = ("_engine", "_head", "_is_dead", "_mark", "_say_dead", "_send", "has_begun")

    def __init__(
        self,
        engine: Engine,
        mark: tuple[bytes, bytes],
        send: Send,
        say_dead: Callable[[Send], Awaitable[None]],
    ) -> None:
        self.has_begun = False
        """Whether any of the engine's answer is on its way."""
        self._engine = engine
        self._mark = mark
        self._send = send
        self._say_dead = say_dead
        self._head: Message | None = None
        self._is_dead = False

    async def die(self) -> None:
        """The engine is dead, and its answer has not begun: say so, and nothing after it."""
        if not self._is_dead:
            self._is_dead = True
            await self._say_dead(self._send)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), self._mark]
            self._head = message
            return
        if self._head is not None:
            head, self._head = self._head, None
            if self._engine.alive:
                self.has_begun = True
                await self._send(head)
            else:
                await self.die()
        elif self.has_begun and not self._engine.alive:
            name = self._mark[1].decode()
            raise EngineError(f"the engine of {name} died in the middle of an answer")
        if self.has_begun:
            await self._send(message)


def _told(send: Send, span: RequestSpan) -> Send:
    """Tell the span how the answer begins."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.status(message["status"])
            if header(message.get("headers", ()), ENGINE_HEADER) == "dead":
                span.failed("engine_dead")
        await send(message)

    return told
