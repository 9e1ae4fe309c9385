"""The guards of a rollout file: what is compared, what is tolerated, what would be too much."""

import math
from collections.abc import Collection, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from serve_app.config.strict import StrictModel
from serve_app.rollout.guards import Guard, Kind, Property
from serve_app.rollout.observations import LatencyName

Share = Annotated[float, Field(ge=0, lt=1)]
Margin = Annotated[float, Field(gt=0, lt=1)]


class ShareGuardConfig(StrictModel):
    """Compares the shares of requests that have a property, in excess of the baseline's."""

    tolerated: Share = 0.0
    """Rolled back if shown to be worse by more than this: 0.001 is one request in 1,000."""
    margin: Margin
    """Promoted only if shown to be worse by less than this."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.tolerated > self.margin:
            raise ValueError(
                f"tolerated {self.tolerated:g} is above margin {self.margin:g}: the candidate "
                "could be promoted and rolled back on the same evidence"
            )
        return self


class TailGuardConfig(ShareGuardConfig):
    """Compares the shares of requests above a quantile of the baseline's latencies.

    With quantile 0.99 and margin 0.01, a candidate of which at most 2 % are above the baseline's
    P99 is good enough: its P98 is no slower than the baseline's P99.
    """

    quantile: Annotated[float, Field(ge=0.5, lt=1)]


class MeanGuardConfig(StrictModel):
    """Compares latencies request by request: needs pairs."""

    tolerated: NonNegativeFloat = 0.0
    """Slowdown of the typical request (the geometric mean of ratios): 0.02 is 2 %."""
    margin: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.tolerated > self.margin:
            raise ValueError(f"tolerated {self.tolerated:g} is above margin {self.margin:g}")
        return self


class LatencyGuardsConfig(StrictModel):
    """Guards of one latency."""

    mean: MeanGuardConfig | None = None
    tails: tuple[TailGuardConfig, ...] = ()

    @model_validator(mode="after")
    def _no_twins(self) -> Self:
        quantiles = [each.quantile for each in self.tails]
        if len(set(quantiles)) < len(quantiles):
            raise ValueError(f"`tails` repeats a quantile: {', '.join(map(str, quantiles))}")
        return self


class DisagreementConfig(ShareGuardConfig):
    """Answers of the candidate that differ from the baseline's (words in their normal form)."""

    against_floor: bool = True
    """In excess of how often the baseline differs from itself, which batching alone makes it do:
    needs probes with `floor`. False: of all answers, so that `tolerated` should not be 0."""


class LimitConfig(StrictModel):
    """A limit of the candidate alone. A busy hour that slows both arms counts against it."""

    of: Literal["error", "ttft", "tpot"]
    above_s: PositiveFloat | None = None
    """Of a latency: what is above it violates the limit."""
    at_most: Margin
    """Share of requests that may."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if (self.of == "error") != (self.above_s is None):
            raise ValueError("`above_s` is for limits of ttft and tpot, which need it")
        return self


class GuardsConfig(StrictModel):
    """All guards. Each must show its margin kept before a step that asks for it ends well."""

    errors: ShareGuardConfig = ShareGuardConfig(margin=0.01)
    ttft: LatencyGuardsConfig | None = None
    tpot: LatencyGuardsConfig | None = None
    disagreement: DisagreementConfig | None = None
    wrong: ShareGuardConfig | None = None
    """Answers that miss what the prompt expects: probes with expectations."""
    limits: tuple[LimitConfig, ...] = ()

    @property
    def needs_floor(self) -> bool:
        """Whether the baseline has to be asked twice."""
        return self.disagreement is not None and self.disagreement.against_floor

    def check(self, kinds: Collection[str]) -> None:
        """Raises ValueError for a guard of which no source of evidence can tell."""
        if not {"probes", "campaign"} & set(kinds) and any(
            each is not None and each.mean for each in (self.ttft, self.tpot)
        ):
            raise ValueError(
                "`mean` compares latencies pair by pair, and metrics have no pairs: use "
                "tails with quantile: 0.5, or add probes to `evidence`"
            )
        if "probes" not in kinds and (self.disagreement or self.wrong):
            raise ValueError("`disagreement` and `wrong` need answers: add probes to `evidence`")

    def to_guards(self) -> tuple[Guard, ...]:
        """As the pure core has them, with names for people."""
        found = [Guard("errors", Kind.SHARE, self.errors.tolerated, self.errors.margin)]
        found += _of_latency("ttft", self.ttft)
        found += _of_latency("tpot", self.tpot)
        if self.disagreement is not None:
            found.append(
                Guard(
                    "disagreement",
                    Kind.SHARE,
                    self.disagreement.tolerated,
                    self.disagreement.margin,
                    Property.DISAGREES,
                    against_floor=self.disagreement.against_floor,
                )
            )
        if self.wrong is not None:
            kind, wrong = Kind.SHARE, self.wrong
            found.append(Guard("wrong", kind, wrong.tolerated, wrong.margin, Property.WRONG))
        return (*found, *(_limit(each) for each in self.limits))


def _of_latency(name: LatencyName, config: LatencyGuardsConfig | None) -> Iterator[Guard]:
    if config is None:
        return
    if config.mean is not None:
        yield Guard(
            f"{name} mean",
            Kind.MEAN,
            math.log1p(config.mean.tolerated),
            math.log1p(config.mean.margin),
            Property.SLOW,
            name,
        )
    for tail in config.tails:
        yield Guard(
            f"{name} above P{100 * tail.quantile:g}",
            Kind.SHARE,
            tail.tolerated,
            tail.margin,
            Property.SLOW,
            name,
            quantile=tail.quantile,
        )


def _limit(config: LimitConfig) -> Guard:
    share = config.at_most
    if config.of == "error":
        return Guard("error limit", Kind.LIMIT, share, share)
    name = f"{config.of} limit {config.above_s:g} s"
    slow = Property.SLOW
    return Guard(name, Kind.LIMIT, share, share, slow, config.of, limit_s=config.above_s)
