"""Files of `configs/rollouts/`: what is to take over from what, in which steps, on which evidence.

Requests are counted at the candidate; shares are of the traffic that baseline and candidate have
together, so that other variants of the split keep theirs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve_app.config.parse import parse, read_yaml
from serve_app.config.rollout_evidence import EvidenceConfig, ProbesConfig
from serve_app.config.rollout_guards import GuardsConfig
from serve_app.config.strict import ModelName, StrictModel, VariantName
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import BP_TOTAL
from serve_app.rollout.plan import AdvanceOn, RolloutPlan, Step

HttpRoot = Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]


class LimitsConfig(StrictModel):
    """How long a step may and must take. Both pairs hold: of requests and of time."""

    min_requests: PositiveInt = 200
    max_requests: PositiveInt = 10_000
    min_duration_s: NonNegativeFloat = 60.0
    """At least two export intervals of the metrics, where those are the evidence."""
    max_duration_s: PositiveFloat = 3600.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_requests > self.max_requests:
            raise ValueError(
                f"min_requests {self.min_requests} is above max_requests {self.max_requests}"
            )
        if self.min_duration_s > self.max_duration_s:
            raise ValueError(
                f"min_duration_s {self.min_duration_s:g} is above max_duration_s "
                f"{self.max_duration_s:g}"
            )
        return self


class StepConfig(StrictModel):
    """One share of the traffic; what is not said here is as in `each_step`."""

    share_bp: Annotated[int, Field(ge=0, lt=BP_TOTAL)]
    """Basis points of baseline's and candidate's traffic. 0: no client's request goes there yet,
    only probes do."""
    advance_on: AdvanceOn = AdvanceOn.NON_INFERIOR
    min_requests: PositiveInt | None = None
    max_requests: PositiveInt | None = None
    min_duration_s: NonNegativeFloat | None = None
    max_duration_s: PositiveFloat | None = None


class ServeTarget(StrictModel):
    """The split is changed through the Serve REST API of Ray's dashboard.

    With `RAY_AUTH_MODE=token` the token is that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token, as everywhere in Ray.
    """

    kind: Literal["serve"]
    url: HttpRoot = "http://127.0.0.1:8265"
    application: str = "router"
    """The application of `serve_app.app:router`."""


class RayServiceTarget(StrictModel):
    """The split is changed in a RayService resource, through the Kubernetes API."""

    kind: Literal["rayservice"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = "default"
    api_url: HttpRoot | None = None
    """None: of the pod that this runs in, with its service account. `kubectl proxy` serves
    http://127.0.0.1:8001."""
    application: str = "router"


Target = Annotated[ServeTarget | RayServiceTarget, Field(discriminator="kind")]


class RolloutConfig(StrictModel):
    """One rollout."""

    model: ModelName
    """The public name whose split is changed."""
    baseline: VariantName
    candidate: VariantName
    steps: tuple[StepConfig, ...] = Field(min_length=1)
    """In this order; after the last one the candidate has all of the traffic of the two."""
    each_step: LimitsConfig = LimitsConfig()
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance of a wrong rollback of a candidate that is no worse than tolerated, and of a wrong
    promotion of one that is worse than a margin: over the whole rollout, however often one looks.
    """
    evidence: tuple[EvidenceConfig, ...] = Field(min_length=1)
    """Where answers of both are seen; several sources are taken together."""
    guards: GuardsConfig
    target: Target
    dependence: Annotated[float, Field(ge=1)] = 1.0
    """How many requests of one arm may be slow or fail together, for one cause. The larger of this
    and of what is measured counts; evidence grows as much slower."""
    calibrate_on: Annotated[int, Field(ge=50)] = 200
    """Latencies of the baseline before tails are judged."""
    settle_s: NonNegativeFloat = 5.0
    """After a change of the split, before what is seen counts."""
    seed: int = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.baseline == self.candidate:
            raise ValueError(f"baseline and candidate are both {self.baseline}")
        shares = [step.share_bp for step in self.steps]
        if sorted(set(shares)) != shares:
            raise ValueError(f"steps must grow in share_bp, have {', '.join(map(str, shares))}")
        if self.steps[-1].advance_on is not AdvanceOn.NON_INFERIOR:
            raise ValueError(
                "the last step must have advance_on: non_inferior: the absence of bad news is no "
                "evidence for a promotion"
            )
        kinds = {source.kind for source in self.evidence}
        if 0 in shares and kinds == {"metrics"}:
            raise ValueError(
                "a step of share_bp 0 has no traffic that metrics could tell of: add probes to "
                "`evidence`, or begin with a share"
            )
        self.guards.check(kinds)
        if self.guards.needs_floor and not any(
            isinstance(source, ProbesConfig) and source.floor for source in self.evidence
        ):
            raise ValueError(
                "guards.disagreement.against_floor needs probes with `floor: true`, which ask the "
                "baseline twice"
            )
        for step in self.steps:
            self._limits(step)
        return self

    def _limits(self, step: StepConfig) -> LimitsConfig:
        own = step.model_dump(exclude={"share_bp", "advance_on"}, exclude_none=True)
        return LimitsConfig.model_validate(self.each_step.model_dump() | own)

    def to_plan(self) -> RolloutPlan:
        """What the pure core follows."""
        steps = []
        for step in self.steps:
            limits = self._limits(step)
            steps.append(Step(step.share_bp, step.advance_on, **limits.model_dump()))
        return RolloutPlan(
            steps=tuple(steps),
            guards=self.guards.to_guards(),
            alpha=self.alpha,
            dependence=self.dependence,
            calibrate_on=self.calibrate_on,
            seed=self.seed,
        )


def read_rollout(path: Path) -> RolloutConfig:
    """The file as a rollout; paths in it are relative to its folder. Raises ConfigError."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no rollout: need a mapping, have {type(content).__name__}")
    evidence = content.get("evidence")
    if isinstance(evidence, list):
        content = content | {"evidence": [_beside(path, each) for each in evidence]}
    return parse(RolloutConfig, content, where=str(path))


def _beside(path: Path, source: Any) -> Any:
    """A source of evidence, its paths from the rollout file's folder."""
    if not isinstance(source, dict):
        return source
    paths = {
        key: str(path.parent / source[key])
        for key in ("prompts", "file_sd", "folder")
        if isinstance(source.get(key), str)
    }
    return source | paths
