"""Load stages: how requests arrive.

All but `concurrency` are open loop: arrivals come from the plan and wait for no answer.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from loadtests.campaign.strict import Count, Name, NotNegative, Positive, Strict


class _Stage(Strict):
    name: Name
    duration_s: Positive
    """Length of the measured window of one cell; warm-up and cool-down come on top."""
    gate: bool = True
    """Whether the SLO verdict at this stage decides the campaign's exit status. Where no stage
    has it, as with closed loops alone, the SLO decides nothing: a whole and valid run exits with 0.
    """


class ConstantStage(_Stage):
    """Arrivals evenly spaced."""

    kind: Literal["constant"]
    rate_per_s: Positive


class PoissonStage(_Stage):
    """A Poisson process given its count: the same number of requests in every cell, at
    independent uniform times.
    """

    kind: Literal["poisson"]
    rate_per_s: Positive


class GammaStage(_Stage):
    """Gamma-distributed gaps scaled to fill the window: the offered rate is exact."""

    kind: Literal["gamma"]
    rate_per_s: Positive
    burstiness: Positive
    """Shape of the gaps, as in `vllm bench serve --burstiness`: 1 is Poisson, less is burstier
    (the gaps' coefficient of variation is `burstiness ** -0.5`)."""


class RampStage(_Stage):
    """A Poisson process whose rate goes from one value to the other along a line."""

    kind: Literal["ramp"]
    from_per_s: NotNegative
    to_per_s: NotNegative

    @model_validator(mode="after")
    def _has_arrivals(self) -> "RampStage":
        if self.from_per_s == self.to_per_s:
            raise ValueError("need from_per_s != to_per_s; a level rate is kind: poisson")
        return self

    @property
    def rate_per_s(self) -> float:
        """Mean over the window."""
        return (self.from_per_s + self.to_per_s) / 2


class ConcurrencyStage(_Stage):
    """Closed loop: `concurrency` users, each of whom asks again once it has its answer.

    A slow server is asked less, so latencies hide what waiting users would feel: use it for
    throughput at a batch size, and never for a tail.
    """

    kind: Literal["concurrency"]
    concurrency: Count
    gate: bool = False
    """False: users who wait for answers send no more, and the SLO does not see what they miss."""


class TraceFormat(StrEnum):
    """Published trace formats, as their repositories write them."""

    AZURE = "azure"  # CSV: TIMESTAMP,ContextTokens,GeneratedTokens
    BURSTGPT = "burstgpt"  # CSV: Timestamp,Model,Request tokens,Response tokens,...,Log Type
    MOONCAKE = "mooncake"  # JSONL: timestamp (ms), input_length, output_length, hash_ids


class TraceStage(_Stage):
    """Arrivals and lengths of a recorded trace, from `start_s` of the trace on.

    The trace's lengths replace the workload's; its text is made (with the prefixes that
    Mooncake's `hash_ids` share). Warm-up, window and cool-down follow each other in the trace.
    """

    kind: Literal["trace"]
    format: TraceFormat
    path: Path
    """Relative to the YAML file."""
    start_s: NotNegative = 0.0
    """Seconds of trace time that are left out at its start."""
    speedup: Positive = 1.0
    """2 plays the trace twice as fast."""
    length_scale: Positive = 1.0
    """Factor on input and output lengths, for models with short contexts."""
    max_input_tokens: Count | None = None
    max_output_tokens: Count | None = None
    """Longer ones are cut to this; the report counts them."""


LoadStage = Annotated[
    ConstantStage | PoissonStage | GammaStage | RampStage | ConcurrencyStage | TraceStage,
    Field(discriminator="kind"),
]


class Search(Strict):
    """Find, per variant, the highest rate at which the SLO holds: bisection in log rate.

    Each probe is one cell of a stage of this kind; the campaign's `stages` are then empty.
    """

    kind: Literal["constant", "poisson", "gamma"] = "poisson"
    burstiness: Positive = 1.0
    """For `gamma`."""
    duration_s: Positive
    """Measured window of one probe."""
    low_per_s: Positive
    high_per_s: Positive
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Stop when the bracket is this narrow: highest failed / highest passed - 1."""
    max_probes: Count = 12
    """Rates tried per variant at most."""
    max_repeats: Count = 3
    """Cells at one rate at most, while its verdict is inconclusive."""

    @model_validator(mode="after")
    def _is_range(self) -> "Search":
        if self.low_per_s >= self.high_per_s:
            raise ValueError(
                f"need low_per_s < high_per_s, have {self.low_per_s}, {self.high_per_s}"
            )
        return self
