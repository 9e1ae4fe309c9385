"""The `ladder` of an alias: which variants, in which order, and what the SLO is."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from serve_app.config.strict import StrictModel, VariantName
from serve_app.routing.ladder import LadderRules

Positive = Annotated[float, Field(gt=0)]
BasisPoints = Annotated[int, Field(gt=0, le=10_000)]
_MS_PER_S = 1000


class LadderConfig(StrictModel):
    """Precision as a lever against load: while the SLO holds, all traffic is on the best rung; in
    overload share moves rung by rung to cheaper variants, and back. It moves what the split gives
    to the best rung; what the split gives elsewhere stays there.
    """

    rungs: Annotated[tuple[VariantName, ...], Field(min_length=2)]
    """Variants from the best quality to the cheapest, as `[bf16, int8, gptq]`."""
    ttft_p95_ms: Positive | None = None
    """The SLO: at most 5 % of the streams begin later. Answers that are no streams tell nothing of
    it; where there are no others, give `max_in_flight`."""
    tpot_p95_ms: Positive | None = None
    """The SLO: at most 5 % take longer per token after the first. Known of streams whose `usage`
    reaches the router."""
    max_in_flight: dict[VariantName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Most requests in flight on a rung, per router replica: the highest concurrency at which a
    campaign saw the SLO hold, over the number of router replicas. A rung that is not named learns
    it from its own answers."""
    sessions: Literal["stay", "move"] = "move"
    """`move`: a session follows the ladder's shares, at most once down and once back in a burst,
    but for requests that meet a rung at its limit. `stay`: requests with a session keep to the
    alias' split, and only those without one are moved."""
    window_s: Positive = 10.0
    """Over which answers and arrivals are counted."""
    down_bp: BasisPoints = 5000
    """Most share that a rung gives away in one move."""
    up_bp: BasisPoints = 2500
    """Most share that a rung gets back in one move."""
    down_dwell_s: Positive = 2.0
    """Shortest time between a move and the next one down."""
    up_dwell_s: Positive = 4.0
    """Shortest time between a move and the next one up."""
    clear_bp: BasisPoints = 8500
    """Share comes back only as far as it leaves the rung at this part of what it can carry."""
    hysteresis_bp: BasisPoints = 1000
    """A move up is worth at least this part of what the rung keeps."""
    min_answers: Annotated[int, Field(ge=10)] = 20
    """Answers, since it last changed, before a learned limit changes."""

    @model_validator(mode="after")
    def _is_sound(self) -> "LadderConfig":
        if len(set(self.rungs)) != len(self.rungs):
            raise ValueError(f"need each variant on one rung, have {', '.join(self.rungs)}")
        if unknown := [name for name in self.max_in_flight if name not in self.rungs[:-1]]:
            raise ValueError(
                f"max_in_flight names {', '.join(unknown)}: need rungs above the last, which takes "
                f"all that is left; those are {', '.join(self.rungs[:-1])}"
            )
        has_limits = set(self.rungs[:-1]) <= set(self.max_in_flight)
        if self.ttft_p95_ms is None and self.tpot_p95_ms is None and not has_limits:
            raise ValueError(
                "need an SLO to hold: set ttft_p95_ms, tpot_p95_ms, or max_in_flight of every rung "
                "above the last"
            )
        return self

    def to_rules(self) -> LadderRules:
        """The same for the pure controller, in seconds."""
        return LadderRules(
            rungs=self.rungs,
            ttft_p95_s=None if self.ttft_p95_ms is None else self.ttft_p95_ms / _MS_PER_S,
            tpot_p95_s=None if self.tpot_p95_ms is None else self.tpot_p95_ms / _MS_PER_S,
            max_in_flight=dict(self.max_in_flight) or None,
            window_s=self.window_s,
            min_answers=self.min_answers,
            down_bp=self.down_bp,
            up_bp=self.up_bp,
            down_dwell_s=self.down_dwell_s,
            up_dwell_s=self.up_dwell_s,
            clear_bp=self.clear_bp,
            hysteresis_bp=self.hysteresis_bp,
        )
