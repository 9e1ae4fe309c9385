"""What is watched: each guard is a question to the evidence, with its own e-processes."""

import math
from dataclasses import dataclass
from enum import StrEnum

from serve_app.rollout.observations import LatencyName


class Kind(StrEnum):
    """How a guard's question is put."""

    SHARE = "share"
    """Is the share of requests with a property larger in the candidate? (`betting`)"""
    MEAN = "mean"
    """Is the mean log ratio of paired latencies above 0? (`msprt`)"""
    LIMIT = "limit"
    """Does the candidate alone violate a limit too often? (`slo`)"""


class Property(StrEnum):
    """What a request may have."""

    ERROR = "error"
    SLOW = "slow"
    """Its latency is above a threshold."""
    DISAGREES = "disagrees"
    WRONG = "wrong"


@dataclass(frozen=True)
class Guard:
    """One question. `tolerated` and `margin` are in the guard's own unit.

    The candidate is bad if it is shown to be worse by more than `tolerated`; good if it is shown to
    be worse by less than `margin`. Between them neither answer is wrong.
    """

    name: str
    kind: Kind
    tolerated: float
    """SHARE: excess share of requests; MEAN: log of the ratio; LIMIT: share of requests."""
    margin: float
    of: Property = Property.ERROR
    latency: LatencyName | None = None
    quantile: float | None = None
    """SLOW: the threshold is this quantile of the baseline's latencies."""
    limit_s: float | None = None
    """SLOW, LIMIT: the threshold itself."""
    against_floor: bool = False
    """DISAGREES: in excess of the baseline's disagreement with itself."""

    def says(self, value: float) -> str:
        """A value of this guard, in words."""
        return f"{math.expm1(value):+.1%}" if self.kind is Kind.MEAN else f"{value:+.2%}"
