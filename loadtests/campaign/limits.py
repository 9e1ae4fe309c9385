"""What is good enough for a user, and what makes a run worthless."""

from pydantic import field_validator, model_validator

from loadtests.campaign.strict import Positive, PositiveShare, Strict


class Slo(Strict):
    """Limits that one request must meet, on the user's clock (from the planned send time), and
    the share of requests that must meet them all.
    """

    ttft_ms: Positive | None = None
    e2e_ms: Positive | None = None
    tpot_ms: Positive | None = None
    attainment: PositiveShare = 0.99
    """Share of the planned requests that must meet every limit; errors do not. Below 1, as the
    verdict is an interval's: requests that all meet the limits show a share near 1, never 1."""

    @field_validator("attainment")
    @classmethod
    def _can_be_shown(cls, value: float) -> float:
        if value == 1.0:
            raise ValueError(
                "need less than 1, have 1.0: the lower end of the interval stays below 1 however "
                "many requests pass, so nothing could meet it; n requests can about 1 - 4 / n"
            )
        return value

    @model_validator(mode="after")
    def _has_a_limit(self) -> "Slo":
        if self.ttft_ms is None and self.e2e_ms is None and self.tpot_ms is None:
            raise ValueError("need at least one of ttft_ms, e2e_ms, tpot_ms; or leave slo out")
        return self


class ValidityLimits(Strict):
    """Beyond these the client, not the server, made the numbers: the run is invalid."""

    lag_p99_ms: Positive = 10.0
    """P99 of t_send - t_sched."""
    lag_share_of_ttft: Positive = 0.05
    """P99 of the lag as a share of the median TTFT."""
    achieved_share: PositiveShare = 0.99
    """Sent requests as a share of planned ones."""
    client_cpu_share: PositiveShare = 0.70
    """CPU time of each load process as a share of one core."""
    little_gap: PositiveShare = 0.03
    """|L - lambda W| / L between the pacer's own count and the records."""
    clock_error_ms: Positive = 5.0
    """Half the round trip by which a worker's clock is known."""
