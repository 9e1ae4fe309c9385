"""What a rollout is to do: its steps, what each needs, and how often it may err."""

from dataclasses import dataclass
from enum import StrEnum

from serve_app.rollout.guards import Guard


class AdvanceOn(StrEnum):
    """What lets a step end well."""

    NON_INFERIOR = "non_inferior"
    """Every guard is shown to be within its margin, on this step's evidence alone."""
    NO_BREACH = "no_breach"
    """Nothing is shown against the candidate in `min_requests`, `min_duration_s` and so many looks
    that what is broken would have been found. It proves nothing, so no last step ends so."""


@dataclass(frozen=True)
class Step:
    """One share of the traffic, and what is asked of it. Requests are the candidate's."""

    share_bp: int
    """Of the traffic that baseline and candidate have together."""
    advance_on: AdvanceOn
    min_requests: int
    max_requests: int
    min_duration_s: float
    max_duration_s: float


@dataclass(frozen=True)
class RolloutPlan:
    """Steps, guards and the budget of errors.

    `alpha` bounds both the chance of a rollback of a candidate that is no worse than tolerated in
    anything, over all guards, steps and looks together, and the chance of promoting one that is
    worse than a margin in something.
    """

    steps: tuple[Step, ...]
    guards: tuple[Guard, ...]
    alpha: float
    dependence: float = 1.0
    """How many requests of one arm may hang together; more where more is measured."""
    calibrate_on: int = 200
    """Latencies of the baseline from which thresholds are taken; tails are not judged before."""
    seed: int = 0
