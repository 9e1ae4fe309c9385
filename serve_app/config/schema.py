"""The builder arguments and `user_config` of our two Serve applications, checked strictly.

Unknown keys are refused: a misspelt limit that is silently ignored is found in production.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from serve_app.domain.quant import QuantMethod
from serve_app.domain.traffic import TrafficSplit
from serve_app.domain.units import MIB

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
ModelName = Annotated[str, Field(pattern=r"^[^@\s]{1,128}$")]
VariantName = Annotated[str, Field(pattern=NAME_PATTERN)]


class StrictModel(BaseModel):
    """Frozen, and refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EngineSettings(StrictModel):
    """How one engine runs. `None` leaves the choice to vLLM.

    Sizes follow the plan, not the card: on a shared GPU set `kv_cache_memory_bytes` (what the
    cache may take) and `gpu_memory_utilization` (what vLLM's start-up gate checks) together.
    """

    kind: Literal["vllm", "fake"] = "vllm"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    kv_cache_memory_bytes: PositiveInt | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_cudagraph_capture_size: NonNegativeInt | None = None
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


class RouterArgs(StrictModel):
    """Arguments of `serve_app.app:router`."""

    model: ModelName
    ingress_url: Annotated[str, Field(pattern=r"^http://[^/]+:\d+$")] = "http://127.0.0.1:8000"
    """This node's own Serve ingress, through which variants are reached."""
    max_body_bytes: PositiveInt = 4 * MIB
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    probe_interval_s: Annotated[float, Field(gt=0)] = 1.0
    """How often each variant is asked whether it is ready."""


class RouterUserConfig(StrictModel):
    """The router's `user_config`: what `serve deploy` changes live, without a restart."""

    split: dict[VariantName, NonNegativeInt] = Field(min_length=1)
    """Basis points per variant; they sum to 10,000. A share of 0 keeps the pin reachable."""
    fallback: tuple[VariantName, ...] = ()
    """Who stands in for a variant that cannot take a request, in this order."""

    def to_split(self) -> TrafficSplit:
        """The split as the router uses it. Raises ConfigError."""
        return TrafficSplit(dict(self.split), self.fallback)
