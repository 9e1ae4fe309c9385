"""The Serve applications that the benchmark compares; all stream from the same upstream process."""

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from loadtests.relay_bench.mounted import (
    NO_ACCESS_LOG,
    OPTIONS,
    SPLIT,
    BareRouter,
    args_for,
    deployment,
)
from loadtests.relay_bench.nouns import DEPLOYED, HANDLES, ROUTER, Way
from loadtests.relay_bench.replicas import direct_port, ingress_pids, replica
from loadtests.relay_bench.telling import telling_ways
from loadtests.relay_bench.upstream import CHAT
from serve_app.engines.engine import Scope
from serve_app.serving.http import Headers
from serve_app.serving.local_serve import SERVE_ENV
from serve_app.serving.ports import free_port, own_ports
from serve_app.serving.relay import Answer, Relay, VariantBusyError
from serve_app.serving.upstream import Sink, UpstreamPool

_HANDLE_VARIANT_APP = "handle-variant"
_BARE, _HANDLES = "/bare", "/handles"


class HandleVariant:
    """The variant's end of a streaming `DeploymentHandle`: one connection per request."""

    def __init__(self, upstream_port: int) -> None:
        self._port = upstream_port
        self._pool: UpstreamPool | None = None

    async def stream(self, request: bytes) -> AsyncIterator[bytes]:
        """Yields the pickled (status, headers), then the body's pieces as they come."""
        if self._pool is None:
            self._pool = UpstreamPool("127.0.0.1", self._port)
        answer = await self._pool.request(request)
        try:
            yield pickle.dumps((answer.status, answer.headers))
            while piece := await answer.read():
                yield piece
        finally:
            answer.release()


class HandleAnswer:
    """An answer that comes over a streaming handle."""

    held_back = False

    def __init__(self, status: int, headers: Headers, pieces: Any) -> None:
        self.status, self.headers, self._pieces = status, headers, pieces
        self._first: bytes | None = None

    async def begun(self) -> None:
        """Wait for the first piece."""
        self._first = await self.read()

    async def read(self) -> bytes:
        """The next piece, empty at the end."""
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        following: bytes = await anext(self._pieces, b"")
        return following

    async def hand_on(self, sink: Sink) -> None:
        """Piece by piece."""
        while piece := await self.read():
            if (taking := sink(piece)) is not None:
                await taking

    def release(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Stop the variant's work."""
        self._pieces.cancel()


class HandleRelay:
    """The way over Serve's `DeploymentHandle`, streaming: what the byte relay replaces."""

    def __init__(self) -> None:
        from ray import serve

        self._handle = serve.get_app_handle(_HANDLE_VARIANT_APP).options(stream=True)

    async def ask(
        self, variant: str, scope: Scope, body: bytes, timeout_s: float | None = None
    ) -> Answer:
        """As `Relay.ask`."""
        target = f"/variants/{variant}{scope['path']}"
        head = (
            f"{scope['method']} {target} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        pieces = aiter(self._handle.stream.remote(head.encode() + body))
        try:
            async with asyncio.timeout(timeout_s):
                first = await anext(pieces)
            status, answer_headers = pickle.loads(first)  # noqa: S301 - our own bytes
        except Exception as error:
            raise VariantBusyError(repr(error)) from error
        return HandleAnswer(status, answer_headers, pieces)

    def close(self) -> None:
        """Nothing is kept."""


class HandleRouter(BareRouter):
    """Our router, unchanged but for the way to its variants."""

    def make_relay(self, token: str) -> Relay:
        """The way over handles."""
        return HandleRelay()


@contextmanager
def _environment() -> Iterator[None]:
    """Serve reads it when it is imported, here and in its processes. What turns traces on is not
    the benchmark's caller's to say.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith("OTEL_"):
            del os.environ[name]
    os.environ.update({**SERVE_ENV, **os.environ, **own_ports()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray's handler of SIGTERM would end this process at once, and leave what it started."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set them
        yield
        return
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def serve_ways(
    upstream_port: int, pass_port: int, pass_pid: int, sink_port: int | None = None
) -> Iterator[list[Way]]:
    """Start Ray and Serve with the routers; yields the ways through them.

    The router as deployed reaches the variant through the HAProxy on `pass_port`, as through this
    node's ingress. With `sink_port`, where spans go, also the routers that tell nothing and all.
    Serve and Ray end with the block.
    """
    with _environment():
        import ray
        from ray import serve

        port = free_port()
        try:
            with _own_signals():
                ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            _deploy(upstream_port, pass_port)
            ways = _ways(port, pass_pid)
            if sink_port is not None:
                ways += telling_ways(args_for(upstream_port), sink_port)
            yield ways
        finally:
            ray.shutdown()  # not serve.shutdown(): it would drain idle replicas for 30 s


def _ways(port: int, pass_pid: int) -> list[Way]:
    bare, handles = replica("bare:BareRouter"), replica("handles:HandleRouter")
    behind_handle = replica(f"{_HANDLE_VARIANT_APP}:HandleVariant")
    router = replica("router:VariantRouter")
    return [
        Way(ROUTER, direct_port(bare), f"{_BARE}{CHAT}", (bare,)),
        Way(DEPLOYED, port, CHAT, (router,), lambda: (*ingress_pids(), pass_pid)),
        Way(
            HANDLES,
            direct_port(handles),
            f"{_HANDLES}{CHAT}",
            (handles,),
            lambda: (behind_handle,),
        ),
    ]


def _deploy(upstream_port: int, pass_port: int) -> None:
    """Run all applications in the running Serve instance; returns when they are ready."""
    from ray import serve

    from serve_app.app import VariantRouter as Deployed

    args = args_for(upstream_port)

    handle_variant = serve.deployment(name="HandleVariant", **OPTIONS)(HandleVariant)
    serve.run(handle_variant.bind(upstream_port), name=_HANDLE_VARIANT_APP, route_prefix=None)
    handles = deployment(HandleRouter, SPLIT).bind(args)
    serve.run(handles, name="handles", route_prefix=_HANDLES)
    serve.run(deployment(BareRouter, SPLIT).bind(args), name="bare", route_prefix=_BARE)
    deployed = Deployed.options(user_config=SPLIT, logging_config=NO_ACCESS_LOG)
    serve.run(deployed.bind(args_for(pass_port)), name="router", route_prefix="/")
