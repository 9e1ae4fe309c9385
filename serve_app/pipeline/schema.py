"""The schema of `configs/pipelines/*.yaml`: from a base checkpoint to the variant to ship."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from serve_app.advise.candidates import Goal
from serve_app.config.schema import EngineSettings, GpuSettings
from serve_app.config.strict import NAME_PATTERN, ModelName, StrictModel, VariantName
from serve_app.domain.units import BP_TOTAL

StageName = Annotated[str, Field(pattern=NAME_PATTERN)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]
CampaignSource = Path | dict[str, Any]
"""A file, relative to the pipeline's, or the campaign itself, without `target`."""
Latency = Literal[
    "e2e-p50", "e2e-p95", "e2e-p99", "ttft-p50", "ttft-p95", "ttft-p99", "tpot-p50"
]  # fmt: skip


class _Stage(StrictModel):
    name: StageName
    on_inconclusive: Literal["stop", "continue"] = "stop"
    """`continue`: too little evidence is shown as such, and does not stop the pipeline."""


class MakeGates(StrictModel):
    """What made variants have to hold, besides the correctness gate, which is always asked."""

    max_weights_ratio: Ratio | None = None
    """Bytes of the weights over the baseline's, at most."""


class Make(_Stage):
    """Make variants, and judge each in a real engine against its own dequantized weights."""

    do: Literal["make"]
    recipes: tuple[str, ...] = Field(min_length=1)
    """Names of `configs/quantize/`, or files *.yaml beside the pipeline."""
    gates: MakeGates = MakeGates()


class LatencyBar(StrictModel):
    """How much slower than the baseline a variant may be, at every load stage with `gate`."""

    latency: Latency = "e2e-p95"
    max_ratio: Ratio


class TrialGates(StrictModel):
    """What served variants have to hold."""

    slo: bool = True
    """The campaign's SLO, at its stages with `gate`."""
    latency: LatencyBar | None = None


class Evaluation(StrictModel):
    """What `quantile eval` asks, and the bar that it judges by."""

    margin: Share = 0.01
    """Relative loss of accuracy that is allowed."""
    max_perplexity_ratio: Ratio = 1.05
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    sets: tuple[str, ...] = ()
    """Task sets by name, or .jsonl files beside the pipeline; empty: all that are bundled."""
    text: Path | None = None
    """Text for perplexity, relative to the pipeline; None: the reference corpus."""
    items: PositiveInt | None = None
    """Items per set; None: all of them."""
    windows: PositiveInt | None = None
    """Windows of text for perplexity; None: as many as `quantile eval` takes."""
    answers: PositiveInt | None = None
    """Right answers whose perplexity is taken; None as above."""
    texts: PositiveInt | None = None
    """Generated texts that ROUGE and BLEU compare; None as above."""
    concurrency: PositiveInt = 8


class StagedSplit(StrictModel):
    """Traffic through the alias: whether each request reaches the variant that owns its session."""

    requests: PositiveInt = 400
    shares_bp: dict[VariantName, Annotated[int, Field(ge=0)]] | None = None
    """Basis points per variant; None: equal shares."""
    max_tokens: PositiveInt = 8

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.shares_bp is not None and sum(self.shares_bp.values()) != BP_TOTAL:
            raise ValueError(f"`shares_bp` sums to {BP_TOTAL}, have {sum(self.shares_bp.values())}")
        return self


class Measure(_Stage):
    """Serve the baseline and load it: latency, throughput, memory."""

    do: Literal["measure"]
    campaign: CampaignSource
    """A campaign of `quantile loadtest`; its target is filled in."""
    gates: TrialGates = TrialGates()

    @model_validator(mode="after")
    def _serves_one(self) -> Self:
        if self.gates.latency is not None:
            raise ValueError("gates.latency is against the baseline, and nothing else is served")
        return self


class Validate(_Stage):
    """Serve variants beside the baseline: quality, the split as in production, and load."""

    do: Literal["validate"]
    recipes: tuple[str, ...] | None = None
    """Which variants; None: all that were made before."""
    evaluate: Evaluation = Evaluation()
    split: StagedSplit | None = None
    campaign: CampaignSource | None = None
    gates: TrialGates = TrialGates()


class Recommend(_Stage):
    """Choose by a goal, on the evidence of one validation that has quality and load."""

    do: Literal["recommend"]
    evidence: StageName | None = None
    """The validation; None: the last one with a campaign."""
    goal: Goal = Goal.HIGHEST_QUALITY
    latency: Latency = "e2e-p95"
    quality_bar: Share | None = None
    """Relative loss of score that is allowed; None: the evaluation's own verdict decides."""
    memory_bytes: PositiveInt | None = None
    usd_per_hour: Annotated[float, Field(gt=0)] | None = None
    gpu: str | None = None
    gpus: PositiveInt | None = None

    @model_validator(mode="after")
    def _has_its_bounds(self) -> Self:
        if self.gpus is not None and self.gpu is None:
            raise ValueError("`gpus` counts the GPUs of one type: name it as `gpu`")
        if self.goal is Goal.MEMORY_BOUND and self.memory_bytes is None and self.gpus is None:
            raise ValueError("goal memory-bound needs `memory_bytes`, or `gpu` with `gpus`")
        return self


Stage = Annotated[Make | Measure | Validate | Recommend, Field(discriminator="do")]
Trial = Measure | Validate


class Pipeline(StrictModel):
    """Stages in their order. The first makes the baseline; variants go by their recipes' names."""

    model: ModelName
    base: str
    """The base checkpoint: a folder, or `reference://baseline`."""
    port: Annotated[int, Field(gt=0, lt=1 << 16)] = 8000
    """Of the endpoint on 127.0.0.1, while it is staged."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Engine settings as in a Serve file, of every variant; kind and dtype are the recipe's."""
    gpu: GpuSettings | None = None
    """The GPU that every replica runs on; its share is planned from the checkpoint's bytes."""
    ready_timeout_s: Annotated[float, Field(gt=0)] = 400.0
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _engine_is_known(self) -> Self:
        if taken := sorted({"kind", "dtype", "fake"} & self.engine.keys()):
            raise ValueError(f"engine: leave out {', '.join(taken)}: the recipe says it")
        EngineSettings.model_validate(self.engine)
        if self.gpu is not None and self.gpu.fraction is not None:
            raise ValueError("gpu: leave out fraction: it is planned for each variant")
        return self

    @model_validator(mode="after")
    def _stages_make_sense(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: need distinct names, have {names}")
        first = self.stages[0]
        if not isinstance(first, Make) or len(first.recipes) != 1:
            raise ValueError("stages: the first makes the baseline: `do: make` with one recipe")
        made: list[str] = []
        for i, stage in enumerate(self.stages):
            if isinstance(stage, Make):
                made += map(variant_of, stage.recipes)
            if isinstance(stage, Validate):
                self._require_made(stage, made)
            if isinstance(stage, Recommend) and i != len(self.stages) - 1:
                raise ValueError(f"stage {stage.name}: a recommendation comes last")
            if isinstance(stage, Recommend):
                self._require_evidence(stage)
        if len(set(made)) != len(made):
            raise ValueError(f"stages: make each recipe once, have {made}")
        return self

    def _require_made(self, stage: Validate, made: list[str]) -> None:
        names = [variant_of(name) for name in stage.recipes or ()]
        if unknown := [name for name in names if name not in made]:
            raise ValueError(f"stage {stage.name}: {', '.join(unknown)} is not made before it")
        if not [name for name in names or made if name != made[0]]:
            raise ValueError(f"stage {stage.name}: needs a variant besides the baseline")
        shares = stage.split.shares_bp if stage.split is not None else None
        served = self.served_by(stage)
        if shares is not None and set(shares) != set(served):
            raise ValueError(
                f"stage {stage.name}: `shares_bp` needs the variants that it serves, "
                f"{', '.join(served)}, have {', '.join(shares)}"
            )

    def _require_evidence(self, stage: Recommend) -> None:
        if self.evidence_of(stage) is None:
            have = [s.name for s in self.stages if isinstance(s, Validate) and s.campaign]
            raise ValueError(
                f"stage {stage.name}: needs a validation with a campaign"
                + (f" named {stage.evidence}; have {', '.join(have)}" if stage.evidence else "")
            )

    def evidence_of(self, stage: Recommend) -> Validate | None:
        """The validation that a recommendation rests on."""
        known = [s for s in self.stages if isinstance(s, Validate) and s.campaign is not None]
        named = [s for s in known if stage.evidence in (None, s.name)]
        return named[-1] if named else None

    @property
    def variants(self) -> tuple[str, ...]:
        """All that the pipeline makes, the baseline first."""
        made = [name for stage in self.stages if isinstance(stage, Make) for name in stage.recipes]
        return tuple(map(variant_of, made))

    def served_by(self, stage: Trial) -> tuple[str, ...]:
        """The variants that a stage serves, the baseline first."""
        baseline, *_ = self.variants
        if isinstance(stage, Measure):
            return (baseline,)
        if stage.recipes is not None:
            named = [variant_of(name) for name in stage.recipes]
        else:
            before = self.stages[: self.stages.index(stage)]
            named = [
                variant_of(name)
                for each in before
                if isinstance(each, Make)
                for name in each.recipes
            ]
        return (baseline, *(name for name in named if name != baseline))


def variant_of(recipe: str) -> str:
    """The variant's name: the recipe's, which is its file's."""
    return Path(recipe).stem if recipe.endswith(".yaml") else recipe
