"""A circuit breaker: a variant that fails is left alone for a while, then tried with one request.

    CLOSED --failures in a row, or their share of the window--> OPEN
    OPEN --back-off is over, and a request comes--> HALF_OPEN (this request is the probe)
    HALF_OPEN --the probe began its answer--> CLOSED; --it failed--> OPEN, for twice as long

Pure: clock and randomness are the caller's. As Envoy's outlier detection (failures in a row, share
with a minimum of requests, growing back-off), with a probe in place of a full return.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serve_app.routing.recent import RecentCounts


class BreakerState(StrEnum):
    """What a breaker does with requests."""

    CLOSED = "closed"
    """All pass."""
    OPEN = "open"
    """None passes."""
    HALF_OPEN = "half_open"
    """One passes at a time; what becomes of it decides."""


@dataclass(frozen=True)
class BreakerRules:
    """When a breaker opens, and for how long."""

    failures_in_a_row: int = 5
    failure_share: float = 0.5
    """Share of the window's answers that failed, at or above which it opens."""
    min_answers: int = 20
    """Fewer answers in the window say nothing about a share."""
    window_s: float = 10.0
    open_s: float = 1.0
    """The first back-off; each that follows within a window of the last is twice as long."""
    max_open_s: float = 30.0
    jitter: float = 0.2
    """A back-off is drawn from 1 - jitter to 1 + jitter times its length, so that the router's
    replicas do not probe together."""
    probe_limit_s: float = 30.0
    """A probe without a result for so long counts for nothing; the next request probes."""


class Breaker:
    """One variant's breaker. `admit()` each attempt, and end it with one of the other verbs.

    `admit()` gives a permit; what is reported with the permit of an earlier state changes nothing,
    so that answers to requests from before the breaker opened can neither close nor re-open it.
    """

    def __init__(
        self,
        rules: BreakerRules,
        random: Callable[[], float],
        changed: Callable[[BreakerState], None],
    ) -> None:
        self.rules = rules
        self.state = BreakerState.CLOSED
        self._random = random
        self._changed = changed
        self._recent = RecentCounts(rules.window_s)
        self._in_a_row = 0
        self._openings = 0
        self._closed_s = float("-inf")
        self._open_until_s = 0.0
        self._permit = 0
        self._probe_since_s: float | None = None

    def blocks(self, now_s: float) -> bool:
        """Whether an attempt would be refused now."""
        if self.state is BreakerState.CLOSED:
            return False
        if self.state is BreakerState.OPEN:
            return now_s < self._open_until_s
        since_s = self._probe_since_s
        return since_s is not None and now_s < since_s + self.rules.probe_limit_s

    def retry_after_s(self, now_s: float) -> float:
        """For how long it is sure to refuse, or for a probe under way, when to look again."""
        if self.state is BreakerState.OPEN:
            return max(0.0, self._open_until_s - now_s)
        return self.rules.open_s if self.blocks(now_s) else 0.0

    def admit(self, now_s: float) -> int | None:
        """A permit for one attempt; None if it is refused."""
        if self.state is BreakerState.CLOSED:
            return self._permit
        if self.blocks(now_s):
            return None
        self._permit += 1
        self._probe_since_s = now_s
        self._enter(BreakerState.HALF_OPEN)
        return self._permit

    def began(self, permit: int, now_s: float, *, error: bool = False) -> None:
        """The attempt's answer has begun (`error`: with a status of 5xx): it decides a probe.

        Otherwise `ended()` counts it when it is over.
        """
        if permit != self._permit or self.state is not BreakerState.HALF_OPEN:
            return
        if error:
            self._open(now_s)
        else:
            self._permit += 1
            self._probe_since_s = None
            self._closed_s = now_s
            self._in_a_row = 0
            self._recent.clear()
            self._enter(BreakerState.CLOSED)

    def failed(self, permit: int, now_s: float) -> None:
        """The attempt failed before its answer began."""
        if permit == self._permit:
            self._count_failure(now_s, in_a_row=True)

    def abandoned(self, permit: int) -> None:
        """The attempt ended without saying anything of the variant: full, or the client left."""
        if permit == self._permit and self.state is BreakerState.HALF_OPEN:
            self._probe_since_s = None

    def ended(self, now_s: float, *, broke: bool = False, error: bool = False) -> None:
        """An answer that had begun is over: whole, broken off, or whole with a status of 5xx.

        A status of 5xx may be the request's own doing (one that crashes the handler), so it counts
        in the share and not in the row: five bad requests do not close a variant to all others.
        """
        if self.state is not BreakerState.CLOSED:
            return
        if broke or error:
            self._count_failure(now_s, in_a_row=broke)
        else:
            self._in_a_row = 0
            self._recent.add(now_s, total=1)

    def _count_failure(self, now_s: float, *, in_a_row: bool) -> None:
        self._in_a_row += in_a_row
        self._recent.add(now_s, total=1, part=1)
        if self.state is BreakerState.HALF_OPEN or self._is_too_much():
            self._open(now_s)

    def _is_too_much(self) -> bool:
        rules, recent = self.rules, self._recent
        is_share = recent.total >= rules.min_answers
        return self._in_a_row >= rules.failures_in_a_row or (
            is_share and recent.part >= rules.failure_share * recent.total
        )

    def _open(self, now_s: float) -> None:
        rules = self.rules
        is_probe = self.state is BreakerState.HALF_OPEN
        is_relapse = is_probe or now_s < self._closed_s + rules.window_s
        self._openings = self._openings + 1 if is_relapse else 1
        self._permit += 1
        self._probe_since_s = None
        length_s = min(rules.open_s * 2.0 ** min(self._openings - 1, 64), rules.max_open_s)
        self._open_until_s = now_s + length_s * (1 + rules.jitter * (2 * self._random() - 1))
        self._enter(BreakerState.OPEN)

    def _enter(self, state: BreakerState) -> None:
        if state is not self.state:
            self.state = state
            self._changed(state)
