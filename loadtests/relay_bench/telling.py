"""What telling costs: routers that tell more or less, at once, beside one that tells nothing.

Metrics, traces over OTLP to a process of the benchmark's own, the request log as JSON. What a
router puts off (metrics, spans that wait for their batch, lines for their buffer) it does at the
end of its round, where its time counts.
"""

import asyncio
import http.client
import logging
import os
from typing import Any

from loadtests.relay_bench.mounted import NO_ACCESS_LOG, SPLIT, BareRouter, deployment
from loadtests.relay_bench.nouns import LOGGED, SAMPLED, SILENT, TRACED, Way
from loadtests.relay_bench.replicas import direct_port, replica
from loadtests.relay_bench.upstream import CHAT
from serve_app.config.schema import RouterArgs
from serve_app.domain.errors import InvalidRunError
from serve_app.engines.engine import ASGIApp, Receive, Scope, Send
from serve_app.serving.http import send_json
from serve_app.telemetry.meters import Meters, serve_meters
from serve_app.telemetry.metrics import ServeMetrics

FLUSH = "/flush"
ONE_IN_A_HUNDRED = {
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.01",
}
_TIMEOUT_S = 10.0


class Nothing:
    """Stands for any meter, and forgets what it is told."""

    def __getattr__(self, name: str) -> Any:
        """Whatever is counted."""
        return self._forget

    def _forget(self, *told: object, **more: object) -> None:
        """No metric, no label."""


class FlushedRouter(BareRouter):
    """Does what it put off when it is asked for `FLUSH`."""

    meters: Meters

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once."""
        app = await super().__serve_build_asgi_app__()

        async def flushed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"].endswith(FLUSH):
                if isinstance(self.meters.router, ServeMetrics):
                    self.meters.router.flush()
                await asyncio.to_thread(self._flush)
                await send_json(send, 200, {})
            else:
                await app(scope, receive, send)

        return flushed

    def _flush(self) -> None:
        if self.meters.spans is not None:
            self.meters.spans.flush()
        for handler in logging.getLogger("ray.serve").handlers:
            handler.flush()


class SilentRouter(FlushedRouter):
    """No metrics, no traces, no log."""

    def make_meters(self) -> Meters:
        """Called once."""
        nothing: Any = Nothing()
        self.meters = Meters(nothing, nothing, nothing, lambda alias: nothing)
        return self.meters


class TracedRouter(FlushedRouter):
    """Metrics, and traces as OpenTelemetry's variables in `environ` say."""

    def __init__(self, args: RouterArgs, environ: dict[str, str]) -> None:
        super().__init__(args)
        self._environ = environ

    def make_meters(self) -> Meters:
        """Called once, in the replica's own process."""
        os.environ.update(self._environ)
        self.meters = serve_meters()
        if self.meters.spans is None:
            raise InvalidRunError(f"these variables turn no traces on: {self._environ}")
        return self.meters


class SampledRouter(TracedRouter):
    """A class of its own, for its deployment's name."""


class LoggedRouter(TracedRouter):
    """Likewise."""


def telling_ways(args: RouterArgs, sink_port: int) -> list[Way]:
    """Run the routers in the Serve instance that runs; returns the ways when they are ready."""
    from ray import serve

    logging_config = {"encoding": "JSON", **NO_ACCESS_LOG}
    logged = SPLIT | {"log_requests": True}

    def environ(service: str, sampler: dict[str, str]) -> dict[str, str]:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}"}
        return {**endpoint, "OTEL_SERVICE_NAME": service, **sampler}

    routers: list[tuple[str, str, type, dict[str, Any], tuple[Any, ...]]] = [
        (SILENT, "silent", SilentRouter, SPLIT, (args,)),
        (TRACED, "traced", TracedRouter, SPLIT, (args, environ(TRACED, {}))),
        (SAMPLED, "sampled", SampledRouter, SPLIT, (args, environ(SAMPLED, ONE_IN_A_HUNDRED))),
        (LOGGED, "logged", LoggedRouter, logged, (args, environ(LOGGED, {}))),
    ]
    ways = []
    for name, app, cls, config, bound in routers:
        made = deployment(cls, config, logging_config=logging_config)
        serve.run(made.bind(*bound), name=app, route_prefix=f"/{app}")
        pid = replica(f"{app}:{cls.__name__}")
        ways.append(_way(name, direct_port(pid), f"/{app}", pid))
    return ways


def _way(name: str, port: int, prefix: str, pid: int) -> Way:
    return Way(name, port, prefix + CHAT, (pid,), after=lambda: flush(port, prefix + FLUSH))


def flush(port: int, path: str) -> None:
    """Have a router do what it put off. Raises InvalidRunError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise InvalidRunError(f"{path} on port {port} answered {answer.status}")
    except (OSError, http.client.HTTPException) as error:
        raise InvalidRunError(f"{path} on port {port} failed: {error!r}") from error
    finally:
        connection.close()
