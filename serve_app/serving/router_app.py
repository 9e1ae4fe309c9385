"""The router's ASGI application: decide once per request, then pass bytes on."""

import logging
import time
from collections.abc import Callable

import msgspec

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.domain.errors import (
    MalformedRequestError,
    MethodNotAllowedError,
    QuantileError,
    ServerError,
    UnknownPathError,
    VariantUnavailableError,
)
from serve_app.domain.text import shown
from serve_app.domain.traffic import AliasRules, Caller, RouteDecision, RouteReason
from serve_app.engines.engine import Receive, Scope, Send
from serve_app.routing.cohort import cohort_of
from serve_app.routing.pin import parse_model
from serve_app.routing.policy import decide
from serve_app.serving.attempts import Attempts
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.http import (
    REASON_HEADER,
    REQUEST_ID_HEADER,
    SESSION_HEADER,
    UNREADABLE_JSON,
    VARIANT_HEADER,
    ClientGoneError,
    Headers,
    header,
    read_body,
    run_lifespan,
    send_error,
    send_json,
)
from serve_app.serving.limits import Ending
from serve_app.serving.model_list import model_entry, model_list
from serve_app.serving.openapi import OPENAPI_PATH, openapi_document
from serve_app.serving.passing import AnswerCutError, pass_on
from serve_app.serving.relay import Relay
from serve_app.serving.serve_status import Applications, ServeStatus
from serve_app.serving.sleepers import ServeSleepers, Sleepers
from serve_app.serving.status import STATUS_AGE_S, status_of
from serve_app.serving.watch import Watch
from serve_app.telemetry.metrics import RouterMetrics

RELAYED_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
    }
)
_MODELS, _STATUS = "/v1/models", "/status"
_OWN_PATHS = (_MODELS, _STATUS, OPENAPI_PATH, "/healthz", "/readyz")
_NO_VARIANT = "none"
_STARTED = "quantile.answer_started"

logger = logging.getLogger("ray.serve")


class RequestHead(msgspec.Struct):
    """What the router reads of a request's body; the rest is passed on unread."""

    model: str
    user: str | None = None


_HEAD_DECODER = msgspec.json.Decoder(RequestHead)


class RouterApp:
    """Serves the public API. The rules may be replaced at any time; a request sees one of them."""

    def __init__(
        self,
        args: RouterArgs,
        relay: Relay,
        metrics: RouterMetrics,
        applications: Applications | None = None,
        sleepers: Sleepers | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.aliases: dict[str, AliasRules] | None = None
        self._args = args
        self._relay = relay
        self._metrics = metrics
        self._clock = clock
        self._applications = applications or ServeStatus()
        self._directory = VariantDirectory(
            relay, args.probe_interval_s, sleepers or ServeSleepers(self._applications)
        )
        self._attempts = Attempts(relay, self._directory, metrics, clock, args.wake_timeout_s)

    def configure(self, config: RouterUserConfig) -> None:
        """Route by `config` from the next request on; call it in the loop that serves requests.

        Raises ConfigError, and changes nothing.
        """
        self.aliases = config.to_aliases(self._args.model)
        self._directory.follow(config.variants, config.sleepers)

    def close(self) -> None:
        """Stop probing and close kept connections."""
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
                await self._refuse(send, error)
            except Exception:
                if scope.get(_STARTED):
                    raise
                logger.exception("a request could not be routed")
                error_500 = ServerError("the router failed on this request; its log says why")
                await self._refuse(send, error_500)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in RELAYED_PATHS:
            _require_method(method, "POST", path)
            await self._route(scope, receive, send)
        elif path == "/healthz":
            await self._answer(send, 200, {"status": "ok"})
        elif path == "/readyz":
            await self._ready(send)
        elif path == _STATUS:
            _require_method(method, "GET", path)
            await self._status(send)
        elif path == OPENAPI_PATH:
            _require_method(method, "GET", path)
            await self._answer(send, 200, openapi_document())
        elif path == _MODELS:
            _require_method(method, "GET", path)
            await self._answer(send, 200, model_list(self._rules(), self._directory))
        elif path.startswith(f"{_MODELS}/"):
            _require_method(method, "GET", path)
            name = path.removeprefix(f"{_MODELS}/")
            await self._answer(send, 200, model_entry(name, self._rules(), self._directory))
        else:
            paths = ", ".join(sorted([*RELAYED_PATHS, *_OWN_PATHS]))
            raise UnknownPathError(f"there is no {shown(path)} here; served: {paths}")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline_s = self._attempts.deadline_s(scope["headers"], self._clock())
        body = await read_body(scope, receive, self._args.max_body_bytes)
        watch = Watch(self._clock)
        decision = self._decide(_parse_head(body), scope["headers"])
        variant, reason, answer = await self._attempts.first_answer(
            decision, scope, body, deadline_s
        )
        self._metrics.answered(variant, reason, answer.status)
        scope[_STARTED] = True
        limit = self._attempts.limit(deadline_s)
        ending = None
        try:
            ending = await pass_on(answer, send, variant, reason, watch.piece, limit, scope["path"])
        except AnswerCutError as cut:
            ending = cut.ending
            answer.close()
            raise
        except BaseException:  # the client left: not the variant's fault
            answer.close()
            raise
        else:
            answer.release()
        finally:
            whole = ending is Ending.WHOLE
            self._attempts.observe(variant, answer.status, ending)
            self._metrics.observed(watch.observation(variant, answer.status, whole))

    def _decide(self, head: RequestHead, headers: Headers) -> RouteDecision:
        aliases = self._rules()
        alias, pin = parse_model(head.model, aliases)
        rules = aliases[alias]
        caller = Caller(
            request_id=header(headers, REQUEST_ID_HEADER) or str(time.perf_counter_ns()),
            session=header(headers, SESSION_HEADER) or head.user,
            cohort=cohort_of(rules.cohorts, headers),
        )
        # A pin on a variant whose breaker is open is told by `first_answer` when to ask again.
        unavailable = self._directory.known_down()
        if pin is None:
            unavailable |= self._attempts.known_open()
        return decide(rules, caller, pin=pin, unavailable=unavailable)

    async def _ready(self, send: Send) -> None:
        serving = dict.fromkeys(
            name for rules in self._rules().values() for name in rules.split.serving
        )
        waiting = self._directory.not_ready(serving)
        if not waiting:
            await self._answer(send, 200, {"status": "ready"})
            return
        error = VariantUnavailableError(f"not ready yet: {', '.join(waiting)}")
        await send_error(send, error, _marks(_NO_VARIANT, RouteReason.LOCAL))

    async def _status(self, send: Send) -> None:
        aliases = self._rules()
        applications = await self._applications.known(STATUS_AGE_S)
        body = status_of(aliases, self._directory, applications)
        await self._answer(send, 200, body)

    def _rules(self) -> dict[str, AliasRules]:
        if self.aliases is None:
            raise VariantUnavailableError("the router has no split yet: it is still starting")
        return self.aliases

    async def _answer(self, send: Send, status: int, body: object) -> None:
        await send_json(send, status, body, _marks(_NO_VARIANT, RouteReason.LOCAL))

    async def _refuse(self, send: Send, error: QuantileError) -> None:
        self._metrics.answered(_NO_VARIANT, RouteReason.REJECTED, error.http_status)
        await send_error(send, error, _marks(_NO_VARIANT, RouteReason.REJECTED))


def _parse_head(body: bytes) -> RequestHead:
    try:
        return _HEAD_DECODER.decode(body)
    except UNREADABLE_JSON as error:
        raise MalformedRequestError(
            f"the body is not a request that the router understands: {error}; "
            'it needs JSON with at least {"model": "..."}'
        ) from None


def _require_method(method: str, allowed: str, path: str) -> None:
    if method != allowed:
        raise MethodNotAllowedError(f"{shown(path)} takes {allowed}, not {shown(method)}")


def _marks(variant: str, reason: RouteReason) -> Headers:
    return [(VARIANT_HEADER, variant.encode()), (REASON_HEADER, reason.encode())]
