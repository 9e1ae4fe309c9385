"""The builder arguments and `user_config` of our two Serve applications, checked strictly.

Unknown keys are refused: a misspelt limit that is silently ignored is found in production.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from serve_app.config.strict import ModelName, StrictModel, VariantName
from serve_app.domain.quant import QuantMethod
from serve_app.domain.traffic import TrafficSplit
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
    wake_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """How long a request waits for a variant that sleeps; then the fallback order takes it."""


class RouterUserConfig(StrictModel):
    """The router's `user_config`: what `serve deploy` changes live, without a restart."""

    split: dict[VariantName, NonNegativeInt] = Field(min_length=1)
    """Basis points per variant; they sum to 10,000. A share of 0 keeps the pin reachable."""
    fallback: tuple[VariantName, ...] = ()
    """Who stands in for a variant that cannot take a request, in this order."""
    sleepers: tuple[VariantName, ...] = ()
    """Variants with `min_replicas: 0`: without a replica they are asleep, not down."""

    @model_validator(mode="after")
    def _sleepers_are_known(self) -> Self:
        if unknown := [name for name in self.sleepers if name not in self.split]:
            raise ValueError(
                f"`sleepers` names {', '.join(unknown)}, which the split does not list; "
                f"known: {', '.join(self.split)}"
            )
        return self

    def to_split(self) -> TrafficSplit:
        """The split as the router uses it. Raises ConfigError."""
        return TrafficSplit(dict(self.split), self.fallback)
