"""The Serve applications that the benchmark compares; all stream from the same fake engine."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

from serve_app.app import VariantRouter
from serve_app.app import variant as variant_application
from serve_app.config.schema import RouterArgs, RouterUserConfig, VariantArgs
from serve_app.engines.engine import ASGIApp, Message, Scope
from serve_app.serving.http import Headers
from serve_app.serving.relay import VariantBusyError
from serve_app.serving.router_app import RouterApp
from serve_app.serving.upstream import Sink
from serve_app.serving.variant_server import VariantServer
from serve_app.telemetry.metrics import ServeMetrics

MODEL, VARIANT = "bench", "fake"
HANDLE_VARIANT_APP = "handle-variant"
SPLIT = {"split": {VARIANT: 10_000}, "fallback": []}


class HandleVariant:
    """The variant behind a streaming `DeploymentHandle` in place of HTTP."""

    def __init__(self, args: VariantArgs) -> None:
        self._server = VariantServer(args)
        self._app: ASGIApp | None = None
        self._lock = asyncio.Lock()

    async def stream(self, scope: Scope, body: bytes) -> AsyncIterator[bytes]:
        """Yields the pickled (status, headers), then the body's pieces as the engine sends them."""
        async with self._lock:
            if self._app is None:
                self._app = await self._server.__serve_build_asgi_app__()
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        request = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            for message in request:
                return message
            stays: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            return await stays

        async def run() -> None:
            assert self._app is not None
            await self._app(scope, receive, messages.put)
            await messages.put(None)

        work = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield pickle.dumps((message["status"], message["headers"]))
                elif message["body"]:
                    yield message["body"]
        finally:
            work.cancel()


class HandleAnswer:
    """An answer that comes over a streaming handle."""

    def __init__(self, status: int, headers: Headers, pieces: Any) -> None:
        self.status, self.headers, self._pieces = status, headers, pieces

    async def read(self) -> bytes:
        """The next piece, empty at the end."""
        piece: bytes = await anext(self._pieces, b"")
        return piece

    async def hand_on(self, sink: Sink) -> None:
        """Piece by piece."""
        while piece := await self.read():
            await sink(piece)

    def release(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Stop the variant's work."""
        self._pieces.cancel()


class HandleRelay:
    """The way over Serve's `DeploymentHandle`, streaming: what the byte relay replaces."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._handle = serve.get_app_handle(HANDLE_VARIANT_APP).options(stream=True)

    async def ask(self, variant: str, scope: Scope, body: bytes) -> HandleAnswer:
        """As `Relay.ask`."""
        headers = [*scope["headers"], (b"x-quantile-internal", self._token)]
        asked = {"type": "http", "method": scope["method"], "path": scope["path"]}
        pieces = aiter(self._handle.stream.remote(asked | {"headers": headers}, body))
        try:
            status, answer_headers = pickle.loads(await anext(pieces))  # noqa: S301 - our own bytes
        except Exception as error:
            raise VariantBusyError(repr(error)) from error
        return HandleAnswer(status, answer_headers, pieces)

    def close(self) -> None:
        """Nothing is kept."""


class HandleRouter:
    """Our router, unchanged but for the way to its variants."""

    def __init__(self, args: RouterArgs) -> None:
        self._args = args

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once."""
        from serve_app.config.secrets import internal_token

        app = RouterApp(self._args, HandleRelay(internal_token()), ServeMetrics())
        app.configure(RouterUserConfig(split={VARIANT: 10_000}))
        return self._below_prefix(app)

    def _below_prefix(self, app: RouterApp) -> ASGIApp:
        async def mounted(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                scope = {**scope, "path": path, "root_path": ""}
            await app(scope, receive, send)

        return mounted


def deploy(fake: dict[str, Any]) -> None:
    """Run all applications in the running Serve instance; returns when they are ready."""
    args = VariantArgs(
        model=MODEL,
        name=VARIANT,
        checkpoint="none",
        method="unquantized",
        engine={"kind": "fake", "fake": fake},
    )
    options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}
    serve.run(variant_application(args), name=VARIANT, route_prefix=f"/variants/{VARIANT}")
    handle_variant = serve.deployment(name="HandleVariant", **options)(HandleVariant)
    serve.run(handle_variant.bind(args), name=HANDLE_VARIANT_APP, route_prefix=None)
    router = VariantRouter.options(user_config=SPLIT)
    serve.run(router.bind(RouterArgs(model=MODEL)), name="router", route_prefix="/")
    handle_router = serve.deployment(name="HandleRouter", **options)(serve.ingress()(HandleRouter))
    serve.run(
        handle_router.bind(RouterArgs(model=MODEL)), name="handle-router", route_prefix="/handle"
    )
