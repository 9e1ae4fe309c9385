"""Everything between a routing decision and the first byte of an answer: who is asked, how often,
for how long, and what each outcome says of the variant.

A request may be asked again as long as no byte has reached the client, also when the variant had
sent its head already: a generation leaves nothing behind but its cost
(`serve_app/decisions/0022-resilience.md`).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from enum import Enum
from typing import Any

from serve_app.config.resilience import ResilienceConfig
from serve_app.domain.errors import DeadlineError, VariantUnavailableError
from serve_app.domain.traffic import RouteDecision, RouteReason
from serve_app.engines.engine import Scope
from serve_app.routing.breaker import Breaker, BreakerState
from serve_app.routing.retry_budget import RetryBudget
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.drain import Drain
from serve_app.serving.http import TIMEOUT_HEADER, Headers, asked_timeout_s
from serve_app.serving.limits import AnswerLimit, AnswerLimits, Ending
from serve_app.serving.relay import (
    Answer,
    IngressDownError,
    Relay,
    ReplicaLostError,
    VariantBusyError,
    VariantDownError,
)
from serve_app.serving.upstream import UpstreamTruncatedError
from serve_app.telemetry.metrics import RouterMetrics
from serve_app.telemetry.tracing import SPAN, RequestSpan

FAILURES = "quantile.failures"
"""Set in a scope once a variant did not take its request: which one, and what it said, in order."""
_INGRESS_PAUSE_S = 0.05
_NONE_OPEN: frozenset[str] = frozenset()
_NO_LIMIT = nullcontext()
_NO_VARIANT = "none"


class _Next(Enum):
    """Who is asked after a failure."""

    SAME = "same"
    """The same variant: another replica of it can take the request."""
    HELD = "held"
    """The same variant, which has no replica now, if nobody else can be asked: Serve holds the
    request until it has one."""
    STAND_IN = "stand_in"


class Attempts:
    """One router replica's retries, breakers and deadlines. `clock` is monotonic, in seconds.

    `in_serve`: the replica is Ray Serve's, and watches for its end.
    """

    def __init__(
        self,
        relay: Relay,
        directory: VariantDirectory,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        wake_timeout_s: float = 30.0,
        draw: Callable[[], float] = random.random,
        *,
        in_serve: bool = False,
    ) -> None:
        self.limits = AnswerLimits()
        self._drain = Drain(self.limits)
        self._relay = relay
        self._directory = directory
        self._metrics = metrics
        self._clock = clock
        self._wake_timeout_s = wake_timeout_s
        self._draw = draw
        self._in_serve = in_serve
        self._breakers: dict[str, Breaker] = {}
        self._not_closed: set[str] = set()
        self._config = ResilienceConfig()
        self._budget = RetryBudget(self._config.retry.to_rules())
        self.configure(self._config)

    def configure(self, config: ResilienceConfig) -> None:
        """Follow `config` from the next attempt on. What did not change keeps what it counted."""
        if config.retry.to_rules() != self._budget.rules:
            self._budget = RetryBudget(config.retry.to_rules())
        if config.breaker != self._config.breaker:
            for name in tuple(self._not_closed):
                self._changed(name, BreakerState.CLOSED)
            self._breakers.clear()
        self._config = config
        self.limits.idle_s = _seconds(config.idle_timeout_ms)
        self._drain.after_s = config.drain_s

    def close(self) -> None:
        """Stop watching for this replica's end."""
        self._drain.close()

    def deadline_s(self, headers: Headers, arrived_s: float) -> float | None:
        """By the clock, when a request that came at `arrived_s` must be over; None: whenever.

        Raises MalformedRequestError for an `x-request-timeout-ms` that is no time.
        """
        limit_s, asked_s = _seconds(self._config.request_timeout_ms), asked_timeout_s(headers)
        if limit_s is None or (asked_s is not None and asked_s < limit_s):
            limit_s = asked_s
        return None if limit_s is None else arrived_s + limit_s

    def in_time(self, deadline_s: float | None) -> AbstractAsyncContextManager[None]:
        """Around what a request waits for before it is asked anywhere: its body, its place.

        Raises DeadlineError at `deadline_s`.
        """
        return _NO_LIMIT if deadline_s is None else self._in_time(deadline_s)

    @asynccontextmanager
    async def _in_time(self, deadline_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(deadline_s - self._clock()) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            self._metrics.timed_out(_NO_VARIANT, "waiting")
            raise DeadlineError(
                "the request's time was up before it had a place in the router; give it more "
                f"({TIMEOUT_HEADER.decode()}), or send fewer at once"
            ) from None

    def limit(self, deadline_s: float | None) -> AnswerLimit:
        """What bounds an answer that has begun."""
        return self.limits.begin(None if deadline_s is None else deadline_s - self._clock())

    def known_open(self) -> frozenset[str]:
        """Variants whose breaker lets nothing through now, not even a probe."""
        if not self._not_closed:
            return _NONE_OPEN
        now_s = self._clock()
        return frozenset(name for name in self._not_closed if self._breakers[name].blocks(now_s))

    async def first_answer(
        self, decision: RouteDecision, scope: Scope, body: bytes, deadline_s: float | None
    ) -> tuple[str, RouteReason, Answer]:
        """Ask the chosen variant, then its stand-ins, until the body of an answer has begun.

        Nothing has reached the client yet. Raises VariantUnavailableError when none is left to ask
        or the retry budget is spent, DeadlineError at `deadline_s` (by the clock). The caller owns
        the answer that is returned, and tells `observe` how it ended. Failed attempts are told in
        `scope[FAILURES]`, and to its span.
        """
        if self._in_serve:
            self._drain.seen(scope)
        if self.limits.is_stopped:
            raise _stopping()
        self._budget.request(self._clock())
        waiting = [decision.variant, *decision.stand_ins]
        again, is_held = self._config.retry.same_variant, False
        failures: list[str] = []
        span: RequestSpan | None = scope.get(SPAN)
        while True:
            variant = waiting[0]
            try:
                answer = await self._attempt(variant, scope, body, deadline_s, is_held)
            except VariantBusyError as error:
                failures.append(f"{variant}: {error}")
                scope[FAILURES] = failures
                if span is not None:
                    span.attempt_failed(variant, error)
                step = await self._next(variant, error) if again else _Next.STAND_IN
                is_held = step is _Next.HELD and len(waiting) == 1
                if step is _Next.SAME or is_held:
                    again -= 1
                else:
                    del waiting[0]
                    again = self._config.retry.same_variant
                    self._metrics.fell_back(variant)
                if not waiting:
                    raise self._none_left(decision, failures) from None
                if isinstance(error, VariantDownError):
                    self._spend(variant, failures)
                if isinstance(error, IngressDownError):
                    await self._pause(deadline_s)
            else:
                is_first = variant == decision.variant
                return variant, decision.reason if is_first else RouteReason.FALLBACK, answer

    def observe(self, variant: str, status: int, ending: Ending | None) -> None:
        """An answer of `first_answer` is over; None: its client left, which says nothing of it."""
        if ending is None:
            return
        broke = ending.is_variants_fault
        if broke:
            self._metrics.broke_off(variant)
        elif ending is not Ending.WHOLE:
            self._metrics.timed_out(variant, "stream" if ending is Ending.DEADLINE else "drain")
            return
        breaker = self._breakers.get(variant)
        if breaker is not None:
            breaker.ended(self._clock(), broke=broke, error=not broke and status >= 500)

    def breaker_states(self) -> dict[str, BreakerState]:
        """Of the variants that have been asked, where breakers are on."""
        return {name: breaker.state for name, breaker in self._breakers.items()}

    def view(self) -> dict[str, Any]:
        """What `GET /status` shows of this replica."""
        now_s = self._clock()
        return {
            "draining": self._drain.is_draining,
            "retries_left": self._budget.left(now_s),
            "breakers": {
                name: {"state": breaker.state, "retry_after_s": breaker.retry_after_s(now_s)}
                for name, breaker in self._breakers.items()
            },
        }

    async def _attempt(
        self, variant: str, scope: Scope, body: bytes, deadline_s: float | None, is_held: bool
    ) -> Answer:
        """One attempt at one variant. Raises VariantBusyError, or DeadlineError."""
        breaker = self._breaker(variant)
        if breaker is None:
            return await self._ask(variant, scope, body, deadline_s, is_held)
        permit = breaker.admit(self._clock())
        if permit is None:
            raise VariantBusyError("it failed too often, and is left alone for a while")
        try:
            answer = await self._ask(variant, scope, body, deadline_s, is_held)
        except VariantDownError as error:
            if isinstance(error, IngressDownError):
                breaker.abandoned(permit)
            else:
                breaker.failed(permit, self._clock())
            raise
        except BaseException:  # full, the client left, or its time was up
            breaker.abandoned(permit)
            raise
        breaker.began(permit, self._clock(), error=answer.status >= 500)
        return answer

    async def _ask(
        self, variant: str, scope: Scope, body: bytes, deadline_s: float | None, is_held: bool
    ) -> Answer:
        """Ask a variant and wait for the first bytes of its answer, as long as may be waited."""
        left_s = None if deadline_s is None else deadline_s - self._clock()
        is_asleep = is_held or self._directory.is_asleep(variant)
        limit_s = (
            self._wake_timeout_s if is_asleep else _seconds(self._config.first_byte_timeout_ms)
        )
        if left_s is not None and left_s <= 0:
            raise self._too_late(variant)
        if left_s is not None and (limit_s is None or left_s < limit_s):
            limit_s, is_last = left_s, True
        else:
            is_last = False
        try:
            async with asyncio.timeout(limit_s) as bound:
                answer = await self._begun(variant, scope, body, left_s, bound)
        except TimeoutError:
            if not bound.expired():
                raise
            if self.limits.is_stopped:
                raise _stopping() from None
            if is_last:
                raise self._too_late(variant) from None
            if is_asleep:
                said = f"it has no replica (asleep, or lost), and none after {limit_s:.0f} s"
                raise VariantBusyError(said) from None
            raise VariantDownError(f"no first byte within {limit_s:g} s") from None
        if is_asleep:
            self._directory.has_woken(variant)
        return answer

    async def _begun(
        self,
        variant: str,
        scope: Scope,
        body: bytes,
        left_s: float | None,
        bound: asyncio.Timeout,
    ) -> Answer:
        waiting = self.limits.waiting
        waiting.add(bound)
        try:
            answer = await self._relay.ask(variant, scope, body, left_s)
            try:
                await answer.begun()
            except UpstreamTruncatedError as error:
                answer.close()
                raise ReplicaLostError(f"its answer ended before it began: {error}") from None
            except BaseException:
                answer.close()
                raise
        finally:
            waiting.discard(bound)
        return answer

    async def _next(self, variant: str, error: VariantBusyError) -> _Next:
        """Who is asked after `variant` failed the request with `error`."""
        breaker = self._breakers.get(variant)
        if breaker is not None and breaker.blocks(self._clock()):
            return _Next.STAND_IN
        if isinstance(error, ReplicaLostError):
            return _Next.SAME if await self._directory.is_there(variant) else _Next.HELD
        return _Next.SAME if isinstance(error, IngressDownError) else _Next.STAND_IN

    def _breaker(self, variant: str) -> Breaker | None:
        breaker = self._breakers.get(variant)
        if breaker is None and self._config.breaker is not None:
            breaker = self._breakers[variant] = Breaker(
                self._config.breaker.to_rules(),
                self._draw,
                lambda state: self._changed(variant, state),
            )
        return breaker

    def _changed(self, variant: str, state: BreakerState) -> None:
        if state is BreakerState.CLOSED:
            self._not_closed.discard(variant)
        else:
            self._not_closed.add(variant)
        self._metrics.breaker_changed(variant, state)

    def _spend(self, variant: str, failures: list[str]) -> None:
        """Take a retry after `variant` failed. Raises VariantUnavailableError if none is left."""
        if not self._budget.retry(self._clock()):
            self._metrics.retry_refused(variant)
            raise VariantUnavailableError(
                f"{'; '.join(failures)}; too many requests failed of late for this one to be asked "
                "again (resilience.retry); retry later"
            )
        self._metrics.retried(variant)

    def _none_left(self, decision: RouteDecision, failures: list[str]) -> VariantUnavailableError:
        error = VariantUnavailableError(
            f"no variant took the request ({'; '.join(failures)}); retry"
        )
        now_s = self._clock()
        names = (decision.variant, *decision.stand_ins)
        waits_s = [
            self._breakers[name].retry_after_s(now_s) if name in self._breakers else 0.0
            for name in names
        ]
        error.retry_after_s = max(1.0, min(waits_s))
        return error

    def _too_late(self, variant: str) -> DeadlineError:
        self._metrics.timed_out(variant, "first_byte")
        return DeadlineError(
            f"the request's time was up before variant {variant!r} began to answer; give it more "
            f"({TIMEOUT_HEADER.decode()}), or ask for less"
        )

    async def _pause(self, deadline_s: float | None) -> None:
        """The ingress starts anew within milliseconds, but not at once."""
        pause_s = _INGRESS_PAUSE_S * (1 + self._draw())
        left_s = pause_s if deadline_s is None else max(0.0, deadline_s - self._clock())
        await asyncio.sleep(min(pause_s, left_s))


def _stopping() -> VariantUnavailableError:
    return VariantUnavailableError("this replica of the router stops; another takes the request")


def _seconds(time_ms: int | None) -> float | None:
    return None if time_ms is None else time_ms / 1000
