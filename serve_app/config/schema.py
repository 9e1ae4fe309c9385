"""The builder arguments and `user_config` of our two Serve applications, checked strictly.

Unknown keys are refused: a misspelt limit that is silently ignored is found in production.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from serve_app.config.admission import AdmissionConfig
from serve_app.config.ladder import LadderConfig
from serve_app.config.resilience import ResilienceConfig
from serve_app.config.shadow import ShadowConfig
from serve_app.config.strict import ModelName, StrictModel, VariantName
from serve_app.domain.errors import ConfigError
from serve_app.domain.quant import QuantMethod
from serve_app.domain.traffic import AliasRules, Cohort, TrafficSplit
from serve_app.domain.units import MIB

_OF_LLAMACPP = frozenset(
    {"kind", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "threads"}
)


class EngineSettings(StrictModel):
    """How one engine runs. `None` leaves the choice to the engine.

    Sizes follow the plan, not the card: on a shared GPU set `kv_cache_memory_bytes` (what the
    cache may take) and `gpu_memory_utilization` (what vLLM's start-up gate checks) together.
    """

    kind: Literal["vllm", "llamacpp", "fake"] = "vllm"
    """`llamacpp` runs GGUF on this machine's CPU cores."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    kv_cache_memory_bytes: PositiveInt | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_cudagraph_capture_size: PositiveInt | None = None
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = None
    tensor_parallel_size: PositiveInt = 1
    enforce_eager: bool = False
    threads: PositiveInt | None = None
    """CPU engines only: OpenMP threads. Tiny models are fastest with 1."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of vLLM's server, by its Python name (`enable_prefix_caching`, ...)."""
    fake: dict[str, Any] = Field(default_factory=dict)
    """`kind: fake` only: the script (TTFT, gaps between tokens, faults) of the fake engine."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.kind != "fake" and self.fake:
            raise ValueError(f"`fake` is read with kind: fake only, have kind: {self.kind}")
        if self.kind != "vllm" and self.engine_args:
            raise ValueError(f"`engine_args` is read with kind: vllm only, have kind: {self.kind}")
        if self.kind == "llamacpp" and (ignored := sorted(self.model_fields_set - _OF_LLAMACPP)):
            raise ValueError(
                f"{', '.join(ignored)}: not read with kind: llamacpp, which has "
                f"{', '.join(sorted(_OF_LLAMACPP))}"
            )
        seqs, tokens = self.max_num_seqs, self.max_num_batched_tokens
        if seqs is not None and tokens is not None and tokens < seqs:
            raise ValueError(
                f"max_num_batched_tokens {tokens} is below max_num_seqs {seqs}: each sequence has "
                "at least one token in a batch"
            )
        return self


class GpuSettings(StrictModel):
    """Which GPU one replica runs on, and how much of it: `quantile plan` computes the share."""

    type: str
    """A name of the catalogue, `configs/gpus.yaml`."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each GPU that Ray sets aside (its `num_gpus`), in steps of 0.0001."""
    concurrency: Annotated[float, Field(ge=1)] | None = None
    """Requests of `max_model_len` tokens that the KV cache must hold at once."""

    @model_validator(mode="after")
    def _in_rays_grain(self) -> Self:
        if self.fraction is not None and round(self.fraction, 4) != self.fraction:
            raise ValueError(
                f"`fraction` has steps of 0.0001, as Ray's num_gpus; have {self.fraction!r}"
            )
        return self


class VariantArgs(StrictModel):
    """Arguments of `serve_app.app:variant`: one quantization variant, one application."""

    model: ModelName
    """The public alias that all variants of the model share."""
    name: VariantName
    """The variant's own name: `<model>@<name>` pins it; the route prefix ends in it."""
    checkpoint: str
    """A folder, or `reference://<variant>` for one that `quantile reference build` made."""
    method: QuantMethod
    """What the checkpoint is declared to be; refused at start if it is anything else."""
    aliases: tuple[ModelName, ...] = ()
    """Other public names that this variant answers to: those of the router's `aliases`."""
    engine: EngineSettings = EngineSettings()
    gpu: GpuSettings | None = None
    """None: no GPU is set aside (CPU engines), or the file's `ray_actor_options` say how much."""

    @model_validator(mode="after")
    def _whole_gpus_for_tensor_parallel(self) -> Self:
        ranks = self.engine.tensor_parallel_size
        if self.gpu and ranks > 1 and self.gpu.fraction not in (None, 1.0):
            raise ValueError(
                f"tensor_parallel_size {ranks} takes whole GPUs: set gpu.fraction to 1.0, "
                f"have {self.gpu.fraction}"
            )
        return self


class RouterArgs(StrictModel):
    """Arguments of `serve_app.app:router`."""

    model: ModelName
    ingress_url: Annotated[str, Field(pattern=r"^http://[^/]+:\d+$")] = "http://127.0.0.1:8000"
    """This node's own Serve ingress, through which variants are reached."""
    max_body_bytes: PositiveInt = 4 * MIB
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    probe_interval_s: Annotated[float, Field(gt=0)] = 1.0
    """How often each variant is asked whether it is ready."""
    first_look_s: Annotated[float, Field(ge=0)] = 20.0
    """How long a new replica waits for the first variant that is ready before it takes requests:
    on a new node it starts before the ingress there knows the way to any."""
    wake_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """How long a request waits for a variant that sleeps; then the fallback order takes it."""


class CohortConfig(StrictModel):
    """Callers who are routed by a rule of their own. The first cohort that fits takes a caller."""

    name: VariantName
    """API keys may name their cohort; they then belong to the one of this name."""
    tenants: tuple[str, ...] = ()
    """API keys, by the names that the file of keys gives them."""
    headers: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")], tuple[str, ...]
    ] = Field(default_factory=dict)
    """Header -> values that belong to the cohort. Any client can send a header."""
    split: dict[VariantName, NonNegativeInt] | None = Field(default=None, min_length=1)
    """Its own split, over variants of the alias; None: the alias's."""
    floor: VariantName | None = None
    """The cheapest rung of the ladder that may serve it."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.split is None and self.floor is None:
            raise ValueError(f"cohort {self.name} changes nothing: give it a `split` or a `floor`")
        return self

    def to_cohort(self) -> Cohort:
        """The cohort as the router uses it. Raises ConfigError for a wrong split."""
        return Cohort(
            name=self.name,
            tenants=frozenset(self.tenants),
            headers={key.lower(): frozenset(values) for key, values in self.headers.items()},
            shares_bp=None if self.split is None else TrafficSplit(dict(self.split)).shares_bp,
            floor=self.floor,
        )


class AliasConfig(StrictModel):
    """How requests for one public model name are routed."""

    split: dict[VariantName, NonNegativeInt] = Field(min_length=1)
    """Basis points per variant; they sum to 10,000. A share of 0 keeps the pin reachable."""
    fallback: tuple[VariantName, ...] = ()
    """Who stands in for a variant that cannot take a request, in this order."""
    cohorts: tuple[CohortConfig, ...] = ()
    """Rules that come before the split, in this order."""
    ladder: LadderConfig | None = None
    """Moves what the split gives to the best variant to cheaper ones while load is too high."""
    shadow: ShadowConfig | None = None
    """A candidate that gets a copy of some requests."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [each.name for each in self.cohorts]
        if len(set(names)) < len(names):
            raise ValueError(f"`cohorts` have different names, have {', '.join(names)}")
        rungs = self.ladder.rungs if self.ladder else ()
        self._known(rungs, "ladder")
        self._known([self.shadow.variant] if self.shadow else (), "shadow")
        for each in self.cohorts:
            self._known(each.split or (), f"cohort {each.name}")
            if each.floor is not None and each.floor not in rungs:
                raise ValueError(
                    f"cohort {each.name} has floor {each.floor}, which is no rung of the ladder; "
                    f"rungs: {', '.join(rungs) or 'none, as there is no ladder'}"
                )
        return self

    def _known(self, names: Iterable[str], where: str) -> None:
        if unknown := [name for name in names if name not in self.split]:
            raise ValueError(
                f"{where} names {', '.join(unknown)}, which the split does not list; "
                f"known: {', '.join(self.split)} (a share of 0 is allowed)"
            )

    def to_rules(self) -> AliasRules:
        """The rules as the router uses them. Raises ConfigError."""
        return AliasRules(
            split=TrafficSplit(dict(self.split), self.fallback),
            cohorts=tuple(each.to_cohort() for each in self.cohorts),
            rungs=self.ladder.rungs if self.ladder else (),
            moves_sessions=self.ladder is None or self.ladder.sessions == "move",
        )


class RouterUserConfig(AliasConfig):
    """The router's `user_config`: what `serve deploy` changes live, without a restart.

    The rules at its top are those of the router's own `model`.
    """

    aliases: dict[ModelName, AliasConfig] = Field(default_factory=dict)
    """Other public names over the same variants, each with its rules. The variants serve a name
    that their own `aliases` list."""
    sleepers: tuple[VariantName, ...] = ()
    """Variants with `min_replicas: 0`: without a replica they are asleep, not down."""
    admission: AdmissionConfig = AdmissionConfig()
    """Keys, limits and sizes."""
    log_requests: bool = False
    """A structured line per request in Serve's log: ids, variant, times, tokens; never its text."""
    resilience: ResilienceConfig = ResilienceConfig()
    """Retries, circuit breakers, timeouts."""

    @model_validator(mode="after")
    def _sleepers_are_known(self) -> Self:
        known = self.variants
        if unknown := [name for name in self.sleepers if name not in known]:
            raise ValueError(
                f"`sleepers` names {', '.join(unknown)}, which no split lists; "
                f"known: {', '.join(known)}"
            )
        return self

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that any alias can name."""
        splits = (self.split, *(each.split for each in self.aliases.values()))
        return tuple(dict.fromkeys(name for split in splits for name in split))

    def to_aliases(self, model: str) -> dict[str, AliasRules]:
        """The rules by public name, the router's own `model` first. Raises ConfigError."""
        if model in self.aliases:
            raise ConfigError(
                f"`aliases` repeats {model!r}, the router's own model: its rules stand at the top"
            )
        others = {name: each.to_rules() for name, each in self.aliases.items()}
        return {model: self.to_rules()} | others
