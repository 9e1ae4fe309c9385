"""What one tenant may still take: its request rate and its budgets of tokens.

Token buckets (J. Turner, "New directions in communications", 1986): over any `t` seconds at most
`rate * t + capacity` is taken. Pure: the caller hands in the time.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

DAY_S = 86_400
_BYTES_PER_TOKEN = 4
"""Of English text in today's vocabularies; a body's JSON around it makes up for denser texts."""
_NOTHING = (None, None, None)
_GRAIN = 1e-9
"""Of a float's rounding: a bucket that lacks so little is full enough."""


class TokensNeed(NamedTuple):
    """What a request may cost: tokens of its prompt, and of all its completions at the most."""

    prompt: int
    completion: int


def estimate_need(
    body_bytes: int, max_tokens: int | None, n_answers: int | None, assumed_tokens: int
) -> TokensNeed:
    """Before the tokenizer has seen it: by the size of the body, and by what it asks for.

    `assumed_tokens` stands for a `max_tokens` that the request does not set. Nonsense in either
    counts as not set: the engine refuses it, with a better message.
    """
    each = max_tokens if max_tokens is not None and max_tokens >= 0 else assumed_tokens
    answers = n_answers if n_answers is not None and n_answers >= 1 else 1
    return TokensNeed(math.ceil(body_bytes / _BYTES_PER_TOKEN), each * answers)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may take from one router replica; None is without limit."""

    requests_per_minute: float | None = None
    burst: float = 1.0
    """Requests that may come at once, after a pause; at least 1."""
    concurrent: int | None = None
    tokens_per_minute: float | None = None
    tokens_per_day: float | None = None

    @property
    def are_unlimited(self) -> bool:
        """Whether neither requests nor tokens are counted; `concurrent` aside."""
        return self.requests_per_minute is self.tokens_per_minute is self.tokens_per_day is None


class Reason(StrEnum):
    """Why a request was not admitted; a metric's label."""

    NO_KEY = "no_key"
    BAD_KEY = "bad_key"
    HEADERS = "headers_too_large"
    REQUEST_RATE = "request_rate"
    TOKEN_RATE = "token_rate"  # noqa: S105 - a label
    TOKEN_QUOTA = "token_quota"  # noqa: S105 - a label
    TOO_LARGE = "larger_than_budget"
    TENANT_BUSY = "tenant_concurrency"
    SATURATED = "saturated"
    QUEUE_FULL = "queue_full"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not now, and after how long it may work; None is never, as it stands."""

    reason: Reason
    retry_after_s: float | None
    need: float
    have: float
    limit: float


class Bucket:
    """Fills at `rate_per_s` up to `capacity`; a debt below 0 is paid before more is given."""

    __slots__ = ("_at_s", "_level", "capacity", "rate_per_s")

    def __init__(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.capacity = capacity
        self._level = capacity
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What it holds now. A clock that goes back gives nothing and takes nothing."""
        if now_s > self._at_s:
            filled = self._level + (now_s - self._at_s) * self.rate_per_s
            self._level = min(self.capacity, filled)
            self._at_s = now_s
        return self._level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until it holds `amount`, which is at most its capacity; 0 is now."""
        lacking = amount - self.level(now_s)
        return 0.0 if lacking <= _GRAIN * self.capacity else lacking / self.rate_per_s

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount`, into debt if it must be; below 0 it gives back."""
        self._level = min(self.capacity, self.level(now_s) - amount)

    def resize(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        """Other limits from now on, which give nothing by themselves."""
        self._level = min(self.level(now_s), capacity)
        self.rate_per_s, self.capacity = rate_per_s, capacity


class DayBudget:
    """Tokens of one UTC day. It starts anew at midnight, whatever was left or overdrawn."""

    __slots__ = ("_day", "_used", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._used = 0.0
        self._day = 0

    def left(self, epoch_s: float) -> float:
        """Tokens that are left today; below 0 where answers were longer than reserved."""
        day = int(epoch_s // DAY_S)
        if day > self._day:
            self._day, self._used = day, 0.0
        return self.limit - self._used

    def take(self, amount: float, epoch_s: float) -> None:
        """Count `amount`; below 0 it gives back, to no more than the whole budget."""
        self._used = max(0.0, self.limit - self.left(epoch_s) + amount)


class Account:
    """Rate and budgets of one tenant. Times are seconds of one monotonic clock.

    `epoch_offset_s` added to it is the time of day, for the budget per day.
    """

    def __init__(self, limits: Limits, now_s: float, epoch_offset_s: float = 0.0) -> None:
        self.limits = limits
        self._epoch_offset_s = epoch_offset_s
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._day: DayBudget | None = None
        self.resize(limits, now_s)

    def resize(self, limits: Limits, now_s: float) -> None:
        """Other limits from now on; a reload gives nobody a fresh budget."""
        self.limits = limits
        rpm, tpm, tpd = limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day
        self._requests = _resized(self._requests, rpm, limits.burst, now_s)
        self._tokens = _resized(self._tokens, tpm, tpm or 0.0, now_s)
        if tpd is None:
            self._day = None
        elif self._day is None:
            self._day = DayBudget(tpd)
        else:
            self._day.limit = tpd

    def reserve(self, tokens: float, now_s: float) -> Refusal | None:
        """Take one request and its `tokens`, all or nothing. Returns why not."""
        refusal = self._refusal(tokens, now_s)
        if refusal is None:
            if self._requests is not None:
                self._requests.take(1.0, now_s)
            self._count(tokens, now_s)
        return refusal

    def _refusal(self, tokens: float, now_s: float) -> Refusal | None:
        """The reason that lasts longest: what waits for it waits long enough for all."""
        found = (
            self._lacks_rate(now_s),
            self._lacks_minute(tokens, now_s),
            self._lacks_day(tokens, now_s),
        )
        if found == _NOTHING:
            return None
        return max(filter(None, found), key=_how_long)

    def _lacks_rate(self, now_s: float) -> Refusal | None:
        bucket, limit = self._requests, self.limits.requests_per_minute
        if bucket is None or limit is None or not (wait_s := bucket.wait_s(1.0, now_s)):
            return None
        return Refusal(Reason.REQUEST_RATE, wait_s, 1.0, bucket.level(now_s), limit)

    def _lacks_minute(self, tokens: float, now_s: float) -> Refusal | None:
        bucket = self._tokens
        if bucket is None:
            return None
        limit = bucket.capacity
        if tokens > limit:
            return Refusal(Reason.TOO_LARGE, None, tokens, bucket.level(now_s), limit)
        # Debts admit nothing, not even a request that reserves nothing.
        wait_s = bucket.wait_s(max(tokens, min(1.0, limit)), now_s)
        if not wait_s:
            return None
        return Refusal(Reason.TOKEN_RATE, wait_s, tokens, bucket.level(now_s), limit)

    def _lacks_day(self, tokens: float, now_s: float) -> Refusal | None:
        budget = self._day
        if budget is None:
            return None
        epoch_s = now_s + self._epoch_offset_s
        left, limit = budget.left(epoch_s), budget.limit
        if tokens > limit:
            return Refusal(Reason.TOO_LARGE, None, tokens, left, limit)
        if left >= max(tokens, min(1.0, limit)):
            return None
        return Refusal(Reason.TOKEN_QUOTA, DAY_S - epoch_s % DAY_S, tokens, left, limit)

    def settle(self, reserved: float, used: float, now_s: float) -> None:
        """Replace what was reserved by what was used, which may be more."""
        self._count(used - reserved, now_s)

    def cancel(self, reserved: float, now_s: float) -> None:
        """The request was never admitted after all: give everything back."""
        if self._requests is not None:
            self._requests.take(-1.0, now_s)
        self._count(-reserved, now_s)

    def _count(self, tokens: float, now_s: float) -> None:
        if self._tokens is not None:
            self._tokens.take(tokens, now_s)
        if self._day is not None:
            self._day.take(tokens, now_s + self._epoch_offset_s)

    def requests_left(self, now_s: float) -> tuple[float, float, float] | None:
        """Of the request rate: limit per minute, requests left, seconds until it is full."""
        bucket, limit = self._requests, self.limits.requests_per_minute
        return None if bucket is None or limit is None else _told(bucket, limit, now_s)

    def tokens_left(self, now_s: float) -> tuple[float, float, float] | None:
        """The same of the tokens per minute."""
        bucket, limit = self._tokens, self.limits.tokens_per_minute
        return None if bucket is None or limit is None else _told(bucket, limit, now_s)


def _how_long(refusal: Refusal) -> float:
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


def _resized(
    bucket: Bucket | None, per_minute: float | None, capacity: float, now_s: float
) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute / 60, capacity, now_s)
    bucket.resize(per_minute / 60, capacity, now_s)
    return bucket


def _told(bucket: Bucket, limit: float, now_s: float) -> tuple[float, float, float]:
    left = bucket.level(now_s)
    return limit, max(0.0, left), bucket.wait_s(bucket.capacity, now_s)
