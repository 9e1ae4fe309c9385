"""How the router deals with variants that fail: retries, breakers, and how long it waits.

All of it changes live; every router replica counts for itself. What the defaults come from and how
the timeouts must be ordered: `serve_app/decisions/0022-resilience.md`.
"""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from serve_app.config.strict import StrictModel
from serve_app.domain.errors import ConfigError
from serve_app.routing.breaker import BreakerRules
from serve_app.routing.retry_budget import BudgetRules

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class RetryConfig(StrictModel):
    """Asking again for a request of which no byte has reached the client."""

    same_variant: NonNegativeInt = 1
    """Attempts at the same variant after its first failed, so that another replica takes it."""
    budget_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Retries are at most this share of the requests of the last `window_s`, ..."""
    budget_min_per_s: NonNegativeFloat = 10.0
    """... and this many per second besides. What a full variant refused is no retry."""
    window_s: Seconds = 10.0

    def to_rules(self) -> BudgetRules:
        """The budget as the router keeps it."""
        return BudgetRules(self.budget_share, self.budget_min_per_s, self.window_s)


class BreakerConfig(StrictModel):
    """When a variant is left alone after failures, and for how long: fields of `BreakerRules`."""

    failures_in_a_row: PositiveInt = 5
    failure_share: Share = 0.5
    min_answers: PositiveInt = 20
    window_s: Seconds = 10.0
    open_s: Seconds = 1.0
    max_open_s: Seconds = 30.0
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    probe_limit_s: Seconds = 30.0

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max_open_s < self.open_s:
            raise ValueError(
                f"max_open_s {self.max_open_s:g} is below open_s {self.open_s:g}: raise it, or "
                "lower open_s"
            )
        return self

    def to_rules(self) -> BreakerRules:
        """The rules as the router keeps them."""
        return BreakerRules(**self.model_dump())


class ResilienceConfig(StrictModel):
    """The router's `user_config.resilience`."""

    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig | None = BreakerConfig()
    """None: variants are never left alone for their failures."""
    request_timeout_ms: PositiveInt | None = None
    """The longest that a request may take, from its arrival to the last byte of its answer. A
    client's `x-request-timeout-ms` may ask for less. None: as long as it takes."""
    first_byte_timeout_ms: PositiveInt | None = None
    """The longest that one attempt may take to the first byte of its answer; then another is made.
    It counts as a failure of the variant, so set it well above the longest wait in a full queue."""
    idle_timeout_ms: PositiveInt | None = 300_000
    """The longest that a variant may say nothing in the middle of an answer."""
    drain_s: Seconds | None = 25.0
    """Answers still under way so long after a router replica was told to stop end in an error
    event. It must end before Serve ends the replica: below the router's
    `graceful_shutdown_timeout_s`, which with HAProxy is at least 35 s. None: Serve cuts them."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        first, whole = self.first_byte_timeout_ms, self.request_timeout_ms
        if first is not None and whole is not None and first >= whole:
            raise ValueError(
                f"first_byte_timeout_ms {first} must be below request_timeout_ms {whole}, or no "
                "time is left for another attempt"
            )
        return self


HAPROXY_FLOOR_S = 35.0
"""Serve raises `graceful_shutdown_timeout_s` to this behind HAProxy: 30 s in which a replica that
is stopped still takes requests (`RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S`), and 5 s."""
LAST_WORDS_S = 7.0
"""To learn that it is stopped (a second), and to end its last answers (five, of a slow client)."""


def check_drain(config: ResilienceConfig, graceful_shutdown_timeout_s: float) -> None:
    """Whether the router's last answers end before Serve ends their replica. Raises ConfigError."""
    stop_s = max(graceful_shutdown_timeout_s, HAPROXY_FLOOR_S)
    if config.drain_s is not None and config.drain_s + LAST_WORDS_S > stop_s:
        raise ConfigError(
            f"resilience.drain_s {config.drain_s:g} and {LAST_WORDS_S:g} s for the last words end "
            f"after Serve has ended the router's replica ({stop_s:g} s): set drain_s to "
            f"{stop_s - LAST_WORDS_S:g}, or VariantRouter's graceful_shutdown_timeout_s to "
            f"{config.drain_s + LAST_WORDS_S:g}"
        )
