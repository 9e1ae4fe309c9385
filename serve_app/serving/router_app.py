"""The router's ASGI application: decide once per request, then pass bytes on."""

import logging
import time
from collections.abc import Callable
from typing import Any

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.domain.errors import (
    BodyTooLargeError,
    QuantileError,
    ServerError,
    UnknownPathError,
    VariantUnavailableError,
)
from serve_app.domain.text import shown
from serve_app.domain.traffic import AliasRules, RouteReason
from serve_app.engines.engine import Receive, Scope, Send
from serve_app.serving.console import CONSOLE, Console
from serve_app.serving.console_split import StoreOf
from serve_app.serving.console_state import console_state, host_memory_bytes
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.http import (
    CLOSES,
    REASON_HEADER,
    REQUEST_ID_HEADER,
    VARIANT_HEADER,
    ClientGoneError,
    Headers,
    header,
    require_method,
    run_lifespan,
    send_error,
    send_error_and_linger,
    send_json,
)
from serve_app.serving.model_list import model_entry, model_list
from serve_app.serving.openapi import OPENAPI_PATH, openapi_document
from serve_app.serving.relay import Relay
from serve_app.serving.request_path import (
    GENERATING_PATHS,
    STARTED,
    TOKENIZING_PATHS,
    RequestPath,
)
from serve_app.serving.serve_status import Applications, ServeStatus
from serve_app.serving.sleepers import ServeSleepers, Sleepers
from serve_app.serving.status import STATUS_AGE_S, status_of
from serve_app.telemetry.meters import Meters
from serve_app.telemetry.request_log import log_refusal

RELAYED_PATHS = GENERATING_PATHS | TOKENIZING_PATHS | {"/v1/embeddings"}
_MODELS, _STATUS = "/v1/models", "/status"
_OWN_PATHS = (_MODELS, _STATUS, CONSOLE, OPENAPI_PATH, "/healthz", "/readyz")
_NO_VARIANT = "none"

logger = logging.getLogger("ray.serve")


class RouterApp:
    """Serves the public API. The rules may be replaced at any time; a request sees one of them."""

    def __init__(
        self,
        args: RouterArgs,
        relay: Relay,
        meters: Meters,
        applications: Applications | None = None,
        sleepers: Sleepers | None = None,
        clock: Callable[[], float] = time.perf_counter,
        *,
        in_serve: bool = False,
        store_of: StoreOf | None = None,
    ) -> None:
        self._relay = relay
        self._metrics = meters.router
        self._applications = applications or ServeStatus()
        self._directory = VariantDirectory(
            relay, args.probe_interval_s, sleepers or ServeSleepers(self._applications)
        )
        self._path = RequestPath(args, relay, meters, self._directory, clock, in_serve=in_serve)
        self._clock = clock
        self._console = Console(self._path, self._console_state, clock, store_of=store_of)

    @property
    def aliases(self) -> dict[str, AliasRules] | None:
        """The rules by public name; None: not configured yet."""
        return self._path.aliases

    def configure(self, config: RouterUserConfig) -> None:
        """Route by `config` from the next request on; call it in the loop that serves requests.

        Raises ConfigError, and changes nothing.
        """
        self._path.configure(config)
        self._directory.follow(config.variants, config.sleepers)

    async def first_look(self, limit_s: float) -> list[str]:
        """As `VariantDirectory.first_look`, at the variants that have a share."""
        return await self._directory.first_look(self._serving(), limit_s)

    def close(self) -> None:
        """Stop all that runs beside the requests, and close kept connections."""
        self._console.close()
        self._path.close()
        self._directory.close()
        self._relay.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                await self._serve(scope, receive, send)
            except ClientGoneError:
                return
            except QuantileError as error:
                await self._refuse(scope, receive, send, error)
            except Exception:
                if scope.get(STARTED):
                    raise
                logger.exception("a request could not be routed")
                error_500 = ServerError("the router failed on this request; its log says why")
                await self._refuse(scope, receive, send, error_500)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in RELAYED_PATHS:
            require_method(method, "POST", path)
            await self._path.serve(scope, receive, send)
        elif path == "/healthz":
            await self._answer(send, 200, {"status": "ok"})
        elif path == "/readyz":
            await self._ready(send)
        elif path == _STATUS:
            require_method(method, "GET", path)
            self._path.identify(scope)
            await self._status(send)
        elif path == CONSOLE or path.startswith(f"{CONSOLE}/"):
            await self._console.serve(
                scope, receive, send, STARTED, _marks(_NO_VARIANT, RouteReason.LOCAL)
            )
        elif path == OPENAPI_PATH:
            require_method(method, "GET", path)
            await self._answer(send, 200, openapi_document())
        elif path == _MODELS:
            require_method(method, "GET", path)
            self._path.identify(scope)
            await self._answer(send, 200, model_list(self._path.rules(), self._directory))
        elif path.startswith(f"{_MODELS}/"):
            require_method(method, "GET", path)
            self._path.identify(scope)
            name = path.removeprefix(f"{_MODELS}/")
            await self._answer(send, 200, model_entry(name, self._path.rules(), self._directory))
        else:
            paths = ", ".join(sorted([*RELAYED_PATHS, *_OWN_PATHS]))
            raise UnknownPathError(f"there is no {shown(path)} here; served: {paths}")

    async def _ready(self, send: Send) -> None:
        waiting = self._directory.not_ready(self._serving())
        if not waiting:
            await self._answer(send, 200, {"status": "ready"})
            return
        error = VariantUnavailableError(f"not ready yet: {', '.join(waiting)}")
        await send_error(send, error, _marks(_NO_VARIANT, RouteReason.LOCAL))

    def _serving(self) -> list[str]:
        """Every variant that has a share of something."""
        splits = [rules.split.serving for rules in self._path.rules().values()]
        return list(dict.fromkeys(name for serving in splits for name in serving))

    async def _status(self, send: Send) -> None:
        await self._answer(send, 200, await self._status_body())

    async def _status_body(self) -> dict[str, Any]:
        aliases = self._path.rules()
        applications = await self._applications.known(STATUS_AGE_S)
        return status_of(aliases, self._directory, applications) | self._path.view()

    async def _console_state(self, reports: dict[str, Any]) -> dict[str, Any]:
        return console_state(
            await self._status_body(),
            self._directory.cards,
            lambda name: self._path.latency.view(name, self._clock()),
            reports=reports,
            host_bytes=host_memory_bytes(),
            epoch_s=time.time(),
        )

    async def _answer(self, send: Send, status: int, body: object) -> None:
        await send_json(send, status, body, _marks(_NO_VARIANT, RouteReason.LOCAL))

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: QuantileError
    ) -> None:
        if self._path.log_requests:
            request_id = header(scope["headers"], REQUEST_ID_HEADER)
            log_refusal(request_id, scope["path"], error)
        self._metrics.answered(_NO_VARIANT, RouteReason.REJECTED, error.http_status)
        marks = _marks(_NO_VARIANT, RouteReason.REJECTED)
        if isinstance(error, BodyTooLargeError) and CLOSES in error.response_headers:
            await send_error_and_linger(receive, send, error, marks)
        else:
            await send_error(send, error, marks)


def _marks(variant: str, reason: RouteReason) -> Headers:
    return [(VARIANT_HEADER, variant.encode()), (REASON_HEADER, reason.encode())]
