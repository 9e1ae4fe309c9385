"""Admission: who asks, whether it may now, and a place for it, before anything else is done.

Everything here is of one router replica: limits, budgets and places are not shared with others
(`AdmissionConfig.replicas_hint`), and start anew with the process.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping

from serve_app.config.admission import AdmissionConfig
from serve_app.config.tenants import ANONYMOUS, NO_KEYS, KeyRing, Tenant
from serve_app.domain.errors import (
    CallerError,
    ConfigError,
    HeadersTooLargeError,
    InvalidKeyError,
)
from serve_app.engines.engine import Scope
from serve_app.routing.admission import Account, Reason, TokensNeed
from serve_app.routing.fair_queue import FairQueue, Line, Turn, Waiter
from serve_app.serving.admission_keys import KeyFile
from serve_app.serving.admission_refusals import busy_error, limit_error, limit_headers
from serve_app.serving.admission_ticket import NO_NEED, Principal, Ticket
from serve_app.serving.body_times import BodyTimes, PendingBodies
from serve_app.telemetry.admission_counts import AdmissionCounts, TenantLabels
from serve_app.telemetry.metrics import AdmissionMetrics

TICK_S = 1.0
_LINE_FRAMING_BYTES = 4
_HOLD_WEIGHT = 0.1
_BEARER = b"bearer "

logger = logging.getLogger("ray.serve")


class Admission:
    """Admits requests under a configuration that may be replaced at any time.

    `clock` gives monotonic seconds, `epoch` those since 1970.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        metrics: AdmissionMetrics | None = None,
        *,
        epoch: Callable[[], float] = time.time,
        environ: Mapping[str, str] = os.environ,
        tick_s: float = TICK_S,
    ) -> None:
        self._clock = clock
        self._epoch = epoch
        self._epoch_offset_s = epoch() - clock()
        self._metrics = metrics
        self._environ = environ
        self._tick_s = tick_s
        self._ticking: asyncio.Task[None] | None = None
        self._counts = AdmissionCounts()
        self._labels = TenantLabels()
        self._queue = FairQueue(None, 0)
        self._wakes: dict[Waiter, asyncio.Future[None]] = {}
        self._mean_hold_s: float | None = None
        self._keys: KeyFile | None = None
        self._ring = NO_KEYS
        self._principals: dict[str, Principal] = {}
        self._anonymous: Principal | None = None
        self.config = AdmissionConfig()
        self._pending_bodies = PendingBodies(self.config.body.max_pending)
        self.body_times = BodyTimes()
        self._apply(NO_KEYS)

    def configure(self, config: AdmissionConfig) -> None:
        """Admit by `config` from the next request on; call it in the loop that serves requests.

        Raises ConfigError before anything has changed. Requests under way or waiting stay.
        """
        path = config.keys_path(self._environ)
        keys = self._keys if self._keys and self._keys.path == path else None
        if path is not None and keys is None:
            keys = KeyFile(path)
        if keys is None and not config.allows_anonymous(has_keys=False):
            raise ConfigError(
                "admission: `anonymous: false` needs keys, and there are none, so that nobody "
                "could ask: set keys_file (`quantile keys add` makes one)"
            )
        self.config, self._keys = config, keys
        pending, body = self._pending_bodies, config.body
        pending.limit = body.max_pending
        self.body_times = BodyTimes(body.piece_timeout_s, body.timeout_s, pending)
        self._apply(keys.ring if keys else NO_KEYS)
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def close(self) -> None:
        """Stop looking at the file of keys, and report what was counted."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        self._report()

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._queue.n_served

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._queue.n_waiting

    async def admit(self, scope: Scope, need: TokensNeed | None = None) -> Ticket:
        """`identify` and `enter` in one."""
        return await self.enter(self.identify(scope), need)

    def identify(self, scope: Scope) -> Principal:
        """Who asks, by its API key; before its body is read.

        Raises HeadersTooLargeError, InvalidKeyError.
        """
        headers = scope["headers"]
        n_bytes = len(scope["path"]) + len(scope.get("query_string", b""))
        given: bytes | None = None
        n_given = 0
        for name, value in headers:
            n_bytes += len(name) + len(value) + _LINE_FRAMING_BYTES
            if name == b"authorization":
                given = value
                n_given += 1
        config = self.config
        if len(headers) > config.max_headers or n_bytes > config.max_header_bytes:
            self._reject(Reason.HEADERS)
            raise HeadersTooLargeError(
                f"the request has {len(headers)} headers in {n_bytes} bytes with its path, the "
                f"router takes {config.max_headers} in {config.max_header_bytes}; send fewer, or "
                "raise admission.max_headers or max_header_bytes"
            )
        if self._keys is None:
            assert self._anonymous is not None  # `configure` saw to it
            return self._anonymous
        return self._owner(given, n_given)

    def _owner(self, given: bytes | None, n_given: int) -> Principal:
        token = b"" if given is None else given.strip()
        if token[: len(_BEARER)].lower() == _BEARER:
            token = token[len(_BEARER) :].strip()
        elif token and token.lower() != _BEARER.strip():
            self._reject(Reason.BAD_KEY)
            raise InvalidKeyError("`authorization` is not understood: send `Bearer <API key>`")
        else:
            token = b""
        if not token:
            if self._anonymous is not None:
                return self._anonymous
            self._reject(Reason.NO_KEY)
            raise InvalidKeyError("there is no API key: send `authorization: Bearer <API key>`")
        name = self._ring.find(token, self._epoch()) if n_given == 1 else None
        if name is None:
            self._reject(Reason.BAD_KEY)
            raise InvalidKeyError(
                "this API key opens nothing here: it is wrong, has expired, or was taken back"
            )
        return self._principals[name]

    async def enter(self, principal: Principal, need: TokensNeed | None = None) -> Ticket:
        """A place for one request of `principal`, now or after a wait.

        The ticket must be released. Raises RateLimitError, QuotaError. Cancelled, it leaves its
        place to others.
        """
        need = need or NO_NEED
        account = principal.account
        if account is not None:
            now_s = self._clock()
            refusal = account.reserve(need.prompt + need.completion, now_s)
            if refusal is not None:
                raise self._refuse(principal, refusal.reason, limit_error(principal.name, refusal))
        line = self._queue.line(principal.name, principal.concurrent)
        if not self._queue.enter(line):
            try:
                await self._wait(principal, line)
            except BaseException:
                if account is not None:
                    account.cancel(need.prompt + need.completion, self._clock())
                raise
        self._counts.requests[principal.label] += 1
        return Ticket(principal, need, line, self._clock, self._ended)

    async def _wait(self, principal: Principal, line: Line) -> None:
        """Until the request has a place. Raises RateLimitError."""
        is_own_limit = not line.is_below_limit
        after_s = self._place_in_s(principal, line)
        waiter, displaced = self._queue.wait(line)
        if displaced is not None:
            self._wake([displaced])
        if waiter is None:
            raise self._busy(Reason.QUEUE_FULL, principal, after_s)
        began_s = self._clock()
        wake = self._wakes[waiter] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({wake}, timeout=self.config.max_wait_s)
        except BaseException:  # the client left
            self._wake(self._queue.give_up(waiter))
            raise
        finally:
            del self._wakes[waiter]
            self._counts.waits_s.append(self._clock() - began_s)
        if waiter.turn is Turn.SERVED:
            return
        if waiter.turn is Turn.DISPLACED:
            raise self._busy(Reason.QUEUE_FULL, principal, self._place_in_s(principal, line))
        self._wake(self._queue.give_up(waiter))
        reason = Reason.TENANT_BUSY if is_own_limit else Reason.SATURATED
        raise self._busy(reason, principal, self._place_in_s(principal, line))

    def _wake(self, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            wake = self._wakes.get(waiter)
            if wake is not None and not wake.done():
                wake.set_result(None)

    def _ended(self, ticket: Ticket, line: Line) -> None:
        held_s = self._clock() - ticket.began_s
        mean_s = self._mean_hold_s
        self._mean_hold_s = held_s if mean_s is None else mean_s + _HOLD_WEIGHT * (held_s - mean_s)
        if (used := ticket.used) is not None:
            for kind, tokens in zip(("prompt", "completion"), used, strict=True):
                if tokens is not None and tokens > 0:
                    self._counts.tokens[ticket.principal.label, kind] += tokens
        if served := self._queue.leave(line):
            self._wake(served)

    def _place_in_s(self, principal: Principal, line: Line) -> float:
        """When a newcomer may have a place: by Little's law, places free at limit / hold time."""
        hold_s = self._mean_hold_s
        if hold_s is None:
            return self.config.max_wait_s  # nothing has ended yet: nothing is known
        waits = [0.0]
        if self.config.max_in_flight is not None:
            waits.append((self._queue.n_before(line) + 1) * hold_s / self.config.max_in_flight)
        if principal.concurrent is not None:
            waits.append((len(line.waiters) + 1) * hold_s / principal.concurrent)
        return max(waits)

    def _busy(self, reason: Reason, principal: Principal, after_s: float) -> CallerError:
        error = busy_error(reason, principal.name, principal.concurrent, after_s)
        return self._refuse(principal, reason, error)

    def _refuse(self, principal: Principal, reason: Reason, error: CallerError) -> CallerError:
        self._counts.rejected[principal.label, reason.value] += 1
        if principal.account is not None:
            left = limit_headers(principal.account, self._clock())
            error.response_headers = (*error.response_headers, *left)
        return error

    def _reject(self, reason: Reason) -> None:
        """Count a request of nobody that we know."""
        self._counts.rejected[ANONYMOUS, reason.value] += 1

    def _apply(self, ring: KeyRing) -> None:
        """Know these tenants from now on; those that were known keep what they have used."""
        self._ring = ring
        config, before = self.config, self._principals
        self._principals = {
            name: self._principal(tenant, before.get(name)) for name, tenant in ring.tenants.items()
        }
        nobody = Tenant(ANONYMOUS, config.anonymous_limits)
        is_open = config.allows_anonymous(has_keys=self._keys is not None)
        self._anonymous = self._principal(nobody, self._anonymous) if is_open else None
        known = [*self._principals.values(), *([self._anonymous] if self._anonymous else [])]
        own_limits = {principal.name: principal.concurrent for principal in known}
        self._wake(self._queue.resize(config.max_in_flight, config.max_waiting, own_limits))

    def _principal(self, tenant: Tenant, before: Principal | None) -> Principal:
        limits, now_s = tenant.limits.to_limits(self.config.replicas_hint), self._clock()
        account = before.account if before else None
        if limits.are_unlimited:
            account = None
        elif account is None:
            account = Account(limits, now_s, self._epoch_offset_s)
        else:
            account.resize(limits, now_s)
        return Principal(tenant, self._labels.of(tenant.name), limits.concurrent, account)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                await self._look_at_keys()
            except Exception:
                logger.exception("admission: the file of keys could not be looked at")
            try:
                self._report()
            except Exception:
                logger.exception("admission: what was counted could not be reported")

    async def _look_at_keys(self) -> None:
        keys = self._keys
        if keys is not None:
            ring = await asyncio.to_thread(keys.refresh)
            if ring is not None and keys is self._keys:
                self._apply(ring)

    def _report(self) -> None:
        counts, self._counts = self._counts, AdmissionCounts()
        counts.in_flight, counts.waiting = self.in_flight, self.waiting
        counts.keys_stale = self._keys.problem is not None if self._keys else None
        if self._metrics is not None:
            self._metrics.report(counts)
