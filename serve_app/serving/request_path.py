"""The way of one request through the router: who asks, where it goes, and what became of it."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.domain.errors import VariantUnavailableError
from serve_app.domain.observation import Observation
from serve_app.domain.traffic import AliasRules, Caller, RouteDecision
from serve_app.engines.engine import Receive, Scope, Send
from serve_app.routing.cohort import cohort_of
from serve_app.routing.pin import parse_model
from serve_app.routing.policy import decide
from serve_app.serving.admission import Admission
from serve_app.serving.admission_ticket import Principal, Ticket
from serve_app.serving.attempts import FAILURES, Attempts
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.http import REQUEST_ID_HEADER, SESSION_HEADER, header, read_body
from serve_app.serving.ladder_loop import LadderLoop
from serve_app.serving.limits import Ending
from serve_app.serving.passing import AnswerCutError, pass_on
from serve_app.serving.recent_latency import RecentLatency
from serve_app.serving.relay import Answer, Relay
from serve_app.serving.request_head import RequestHead, parse_head
from serve_app.serving.router_gauges import Repeating, tell
from serve_app.serving.served_alias import Flight, ServedAlias
from serve_app.serving.shadow_tap import Tap
from serve_app.serving.sse import is_stream
from serve_app.serving.watch import Watch
from serve_app.telemetry.meters import Meters
from serve_app.telemetry.request_log import Answered, log_answer
from serve_app.telemetry.tracing import SPAN, RequestSpan

GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Their answers have latencies, which are told and teach the ladder; others' are not like them."""
TOKENIZING_PATHS = frozenset({"/tokenize", "/detokenize"})
"""They take up no room in an engine, so the ladder does not count them; it moves them with their
session."""
HTTP_OK, HTTP_BAD_REQUEST = 200, 400
STARTED = "quantile.answer_started"
"""Set in a scope once its answer has begun: from then on there is no other answer to give."""
_CLIENT_LEFT = "client_left"


class RequestPath:
    """Takes requests from the client to a variant and back, by rules that may change at any time.

    Make it in the loop that serves requests.
    """

    def __init__(
        self,
        args: RouterArgs,
        relay: Relay,
        meters: Meters,
        directory: VariantDirectory,
        clock: Callable[[], float],
        *,
        in_serve: bool = False,
    ) -> None:
        self.aliases: dict[str, AliasRules] | None = None
        """The rules by public name, the router's own first; None: not configured yet."""
        self._args = args
        self._relay = relay
        self._meters = meters
        self._spans = meters.spans
        self._directory = directory
        self._clock = clock
        self.log_requests = False
        self._served: dict[str, ServedAlias] = {}
        self._ladders: tuple[LadderLoop, ...] = ()
        self._in_flight: Counter[str] = Counter()
        self._variants: frozenset[str] = frozenset()
        self._gauges = Repeating(self._stands)
        self.latency = RecentLatency()
        self._admission = Admission(clock, meters.admission)
        self._attempts = Attempts(
            relay, directory, meters.router, clock, args.wake_timeout_s, in_serve=in_serve
        )

    def configure(self, config: RouterUserConfig) -> None:
        """Follow `config` from the next request on. Raises ConfigError, and changes nothing."""
        aliases = config.to_aliases(self._args.model)
        self._admission.configure(config.admission)
        self._attempts.configure(config.resilience)
        self.log_requests = config.log_requests
        for name, rules in aliases.items():
            served = self._served.get(name)
            if served is None:
                served = ServedAlias(name, rules, self._relay, self._meters, self._clock)
                self._served[name] = served
            served.configure(rules, config.aliases.get(name, config))
        for name in self._served.keys() - aliases.keys():
            self._served.pop(name).close()
        ladders = (each.ladder for each in self._served.values())
        self._ladders = tuple(ladder for ladder in ladders if ladder.state is not None)
        self.aliases = aliases
        self._variants = frozenset(config.variants)
        self.latency.keep(self._variants)
        self._gauges.start()

    def rules(self) -> dict[str, AliasRules]:
        """The rules by public name. Raises VariantUnavailableError while there are none."""
        if self.aliases is None:
            raise VariantUnavailableError("the router has no split yet: it is still starting")
        return self.aliases

    def close(self) -> None:
        """Stop ladders, shadows, and the watches on the file of keys and on this replica's end."""
        self._gauges.close()
        for served in self._served.values():
            served.close()
        self._admission.close()
        self._attempts.close()
        if self._spans is not None:
            self._spans.close()

    def view(self) -> dict[str, Any]:
        """For `/status`: the state of this replica."""
        return {
            "aliases": {name: served.view() for name, served in self._served.items()},
            "router": {
                "in_flight": self._admission.in_flight,
                "waiting": self._admission.waiting,
                **self._attempts.view(),
            },
        }

    def _stands(self) -> None:
        tell(
            self._meters.router,
            self._variants,
            self._directory,
            self._in_flight,
            self._attempts.breaker_states(),
            self._served,
        )

    def identify(self, scope: Scope) -> Principal:
        """Who asks, who may ask something. Raises InvalidKeyError, HeadersTooLargeError."""
        return self._admission.identify(scope)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that is to be relayed. Raises the errors of `QuantileError`."""
        if self._spans is None:
            await self._serve(scope, receive, send)
            return
        with self._spans.request(scope, f"route {scope['path']}", {}) as traced:
            try:
                await self._serve(traced, receive, send)
            finally:
                if STARTED in traced:
                    scope[STARTED] = True

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline_s = self._attempts.deadline_s(scope["headers"], self._clock())
        principal = self._admission.identify(scope)
        times = self._admission.body_times
        async with self._attempts.in_time(deadline_s):
            body = await read_body(scope, receive, self._args.max_body_bytes, times)
            watch = Watch(self._clock)
            head = parse_head(body)
            alias, pin = parse_model(head.model, self.rules())
            principal.require(alias, pin)
            assumed = self._admission.config.assumed_completion_tokens
            parsed_s = self._clock() - watch.arrived_s
            ticket = await self._admission.enter(principal, head.need(len(body), assumed))
        try:
            parse_model(head.model, self.rules())  # which may have changed while it waited
            served = self._served[alias]
            caller = _caller(head, scope, served.rules, ticket)
            asked = _Asked(scope, body, served, caller, pin, ticket, watch, deadline_s, parsed_s)
            await self._relay_to_variant(asked, send)
        finally:
            ticket.release()

    async def _relay_to_variant(self, asked: "_Asked", send: Send) -> None:
        ladders = () if asked.scope["path"] in TOKENIZING_PATHS else self._ladders
        flight = Flight(ladders, self._in_flight)
        try:
            decision = self._decide(asked)
            own_s = asked.parsed_s + self._clock() - asked.ticket.began_s
            self._meters.router.decided(own_s)
            flight.to(decision.variant)
            variant, reason, answer = await self._attempts.first_answer(
                decision, asked.scope, asked.body, asked.deadline_s
            )
            flight.to(variant)
            if _streams(answer):
                flight.began(self._clock() - asked.watch.arrived_s)
            await self._pass_back(asked, send, RouteDecision(variant, reason), answer, flight)
        finally:
            flight.over(None)

    async def _pass_back(
        self, asked: "_Asked", send: Send, taken: RouteDecision, answer: Answer, flight: Flight
    ) -> None:
        variant, watch, ticket = taken.variant, asked.watch, asked.ticket
        # which are not the answer's any more once it is released
        status, streams = answer.status, _streams(answer)
        self._meters.router.answered(variant, taken.reason, status)
        tap = self._tap(asked, variant) if status == HTTP_OK else None
        if tap is not None:
            watch.tap(tap.piece)
        ticket.settle(None, None)
        asked.scope[STARTED] = True
        span: RequestSpan | None = asked.scope.get(SPAN)
        if span is not None:
            shares_bp = asked.served.rules.split.shares_bp
            span.routed(asked.served.name, variant, taken.reason, shares_bp)
        limit = self._attempts.limit(asked.deadline_s)
        path, marks = asked.scope["path"], ticket.headers()
        ending = None
        try:
            ending = await pass_on(
                answer, send, variant, taken.reason, watch.piece, limit, path, marks
            )
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
            seen = watch.observation(variant, status, ending is Ending.WHOLE, streams)
            self._attempts.observe(variant, status, ending)
            generates = path in GENERATING_PATHS
            if generates:
                self._meters.router.observed(seen)
            self.latency.observe(seen, self._clock())
            flight.over(seen if generates else None)
            told = _CLIENT_LEFT if ending is None else str(ending)
            if span is not None:
                span.answered(seen, told)
            if self.log_requests:
                is_fault = ending is not None and ending.is_variants_fault
                _log(asked, taken.reason, seen, told, span, is_fault=is_fault)
            if tap is not None:
                tap.ended(seen.status, seen.whole, seen.ttft_s, seen.duration_s)
            if status >= HTTP_BAD_REQUEST:
                ticket.settle(0, 0)
            elif seen.whole:
                ticket.settle(seen.prompt_tokens, seen.completion_tokens)

    def _tap(self, asked: "_Asked", variant: str) -> Tap | None:
        """Who is shown the answer; nobody, where the key keeps the request from the candidate."""
        caller, shadow = asked.caller, asked.served.shadow
        if caller.variants is not None and shadow.variant not in caller.variants:
            return None
        return shadow.tap(
            caller.request_id, asked.scope, asked.body, variant, session=caller.session
        )

    def _decide(self, asked: "_Asked") -> RouteDecision:
        served, caller, pin = asked.served, asked.caller, asked.pin
        # A pin on a variant whose breaker is open is told by `first_answer` when to ask again.
        unavailable = self._directory.known_down()
        ladder_bp = None
        if pin is None:
            unavailable |= self._attempts.known_open()
            ladder_bp = served.ladder.shares_bp(caller.cohort.floor if caller.cohort else None)
        decision = decide(
            served.rules, caller, pin=pin, ladder_bp=ladder_bp, unavailable=unavailable
        )
        if ladder_bp is not None and asked.scope["path"] not in TOKENIZING_PATHS:
            served.ladder.decided(decision, caller)
        return decision


@dataclass(frozen=True, slots=True)
class _Asked:
    """One admitted request."""

    scope: Scope
    body: bytes
    served: ServedAlias
    caller: Caller
    pin: str | None
    ticket: Ticket
    watch: Watch
    deadline_s: float | None
    parsed_s: float
    """From the whole request to admission."""


def _log(
    asked: _Asked,
    reason: str,
    seen: Observation,
    ending: str,
    span: RequestSpan | None,
    *,
    is_fault: bool,
) -> None:
    log_answer(
        Answered(
            asked.caller.request_id,
            asked.ticket.tenant,
            asked.served.name,
            reason,
            seen,
            ending,
            is_fault,
            asked.scope.get(FAILURES, ()),
            None if span is None else span.trace_id,
        )
    )


def _streams(answer: Answer) -> bool:
    """Whether it has a first token that comes before its last: by what the variant says it is, as a
    request may ask for a stream in vain."""
    return answer.status == HTTP_OK and is_stream(header(answer.headers, b"content-type"))


def _caller(head: RequestHead, scope: Scope, rules: AliasRules, ticket: Ticket) -> Caller:
    headers = scope["headers"]
    return Caller(
        request_id=header(headers, REQUEST_ID_HEADER) or str(time.perf_counter_ns()),
        session=header(headers, SESSION_HEADER) or head.user,
        cohort=cohort_of(rules.cohorts, headers, ticket.tenant, ticket.cohort),
        variants=ticket.principal.variants,
    )
