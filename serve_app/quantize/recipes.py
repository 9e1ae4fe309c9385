"""What a variant is made of: storage format, the steps that make it, and how wrong it may be.

Read from `configs/quantize/<name>.yaml`, checked strictly; `serve_app.quantize.job` carries it out.
"""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from serve_app.config.strict import StrictModel, VariantName
from serve_app.domain.quant import QuantMethod, QuantScheme

Share = Annotated[float, Field(ge=0, le=1)]
Container = Literal["compressed-tensors", "gptq", "awq"]
LayerKind = Literal["attention", "feed-forward", "embedding", "head", "other"]
"""What a matrix is for (`weight_error.kind_of`)."""

UNRELATED = 1.0
"""||W - Wq|| / ||W|| of weights that have nothing to do with W is above it; of zeros just it."""


class Numbers(StrictModel):
    """How one kind of tensor is stored, and which of its values share a scale."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8]
    kind: Literal["int", "float"] = "int"
    per: Literal["tensor", "channel", "group", "block", "token"]
    """`channel` is an output channel, `group` `group_size` input channels of one, `block` 128x128
    weights; `token` is for activations."""
    group_size: PositiveInt | None = None
    symmetric: bool = True
    dynamic: bool = False
    """Activations: scales computed from each input, not from the calibration."""

    @model_validator(mode="after")
    def _group_size_belongs_to_groups(self) -> Self:
        if (self.per == "group") != (self.group_size is not None):
            raise ValueError(f"`group_size` goes with `per: group`, have per: {self.per}")
        return self


class LayerRule(StrictModel):
    """One precision, and the linear layers that have it."""

    of: tuple[str, ...] = ("all",)
    """`all`, `attention`, `feed-forward`, or `re:<regular expression of the module's name>`."""
    weights: Numbers
    activations: Numbers | None = None
    """None leaves them in the engine's 16 bits."""


class SmoothQuant(StrictModel):
    """Moves the activations' outliers into the weights (Xiao et al., arXiv 2211.10438)."""

    do: Literal["smoothquant"]
    strength: Share = 0.5


class Awq(StrictModel):
    """Scales up the channels that activations make salient (Lin et al., arXiv 2306.00978)."""

    do: Literal["awq"]
    duo_scaling: bool | Literal["both"] = "both"


class Gptq(StrictModel):
    """Rounds column by column and lets the rest make up for it (arXiv 2210.17323)."""

    do: Literal["gptq"]
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Added to the Hessian's diagonal, as a share of its mean."""
    activation_order: Literal["none", "static", "group"] = "static"
    """`static`: most active columns first, no cost when serving. `group`: g_idx in the checkpoint,
    which vLLM 0.32 refuses."""
    block_size: PositiveInt = 128


class RoundToNearest(StrictModel):
    """Rounds each weight to the nearest level: the yardstick that the others have to beat."""

    do: Literal["rtn"]


Step = Annotated[SmoothQuant | Awq | Gptq | RoundToNearest, Field(discriminator="do")]


class Copy(StrictModel):
    """The base checkpoint as it is."""

    tool: Literal["copy"]


class LlmCompressor(StrictModel):
    """Steps of llm-compressor, in its own environment."""

    tool: Literal["llm-compressor"]
    layers: tuple[LayerRule, ...] = ()
    """The first rule that names a layer decides; layers that none names stay as they are."""
    keep: tuple[str, ...] = ("lm_head",)
    """Modules left as they are, by name or `re:` expression, whatever `layers` says."""
    steps: tuple[Step, ...] = Field(min_length=1)
    kv_cache: Numbers | None = None
    """Scales for a quantized KV cache, from the calibration."""
    layout: Container = "compressed-tensors"
    """`gptq` and `awq`: as AutoGPTQ and AutoAWQ write them."""

    @model_validator(mode="after")
    def _something_is_quantized(self) -> Self:
        if not self.layers and self.kv_cache is None:
            raise ValueError("name `layers` to quantize, or a `kv_cache`")
        if self.layout != "compressed-tensors" and len(self.layers) != 1:
            raise ValueError(f"layout {self.layout} has one precision for all layers")
        return self


class SqueezeLlm(StrictModel):
    """Look-up tables by sensitivity-weighted k-means, outliers kept apart (arXiv 2306.07629)."""

    tool: Literal["squeezellm"]
    bits: Literal[3, 4]
    sensitivity: Literal["fisher", "none"] = "fisher"
    outlier_share: Share = 0.004
    """Share of the weights, the largest ones, that is kept exact in a sparse matrix."""
    sensitive_share: Share = 0.0005
    """The same for the most sensitive ones."""


class Gguf(StrictModel):
    """A single GGUF file, as llama.cpp quantizes it."""

    tool: Literal["gguf"]
    type: Literal["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]


Make = Annotated[Copy | LlmCompressor | SqueezeLlm | Gguf, Field(discriminator="tool")]


class Calibration(StrictModel):
    """Text that activations are measured on: `samples` rows of exactly `length_tokens`."""

    samples: NonNegativeInt = 96
    length_tokens: PositiveInt = 128


class Tolerance(StrictModel):
    """Largest mean |delta logprob| per token (nats) that passes, and the least share that agrees.

    `engine`: the engine against an fp32 forward pass of the same, dequantized weights: wrong
    kernels, layouts and scales show here. `quantization`: that forward pass against the base
    weights': a quantizer that went wrong everywhere shows here. `agreement`: share of decided
    positions (the reference gives one token at least 0.5) with the same most likely token.
    `reason` says what sets the numbers.
    """

    engine: Annotated[float, Field(gt=0)]
    engine_max: Annotated[float, Field(gt=0)] | None = None
    """Largest difference at any one position; None where rounding alone may be large somewhere."""
    quantization: Annotated[float, Field(ge=0)]
    agreement: Share
    weights: Annotated[float, Field(ge=0)] | dict[LayerKind, Annotated[float, Field(ge=0)]] = (
        UNRELATED
    )
    """Largest ||W - Wq|| / ||W|| of any one layer, or by kind of layer, where kinds that are not
    named stay as they are: a quantizer that wrote one layer wrong shows here. Not below what the
    method does to a layer with outliers; the default catches another layer's weights only."""
    reason: str

    def weight_limit(self, kind: LayerKind) -> float:
        """The limit on the weight error of a layer of this kind."""
        return self.weights.get(kind, 0.0) if isinstance(self.weights, dict) else self.weights


class EngineChoice(StrictModel):
    """The engine that runs the format as declared, and the activations' type that it needs."""

    kind: Literal["vllm", "llamacpp"] = "vllm"
    dtype: Literal["float16", "bfloat16"]


class Recipe(StrictModel):
    """How to make one variant of a base checkpoint."""

    name: VariantName
    """The file's name without `.yaml`; not in the file itself."""
    summary: str
    method: QuantMethod
    make: Make
    calibration: Calibration = Calibration()
    engine: EngineChoice
    gate: Tolerance

    @property
    def scheme(self) -> QuantScheme:
        """What `serve_app.store.inspect` finds in a checkpoint that this recipe made."""
        match self.make:
            case Copy():
                return QuantScheme(self.method, bits=16)
            case Gguf(type=name):
                bits = 16 if name == "F16" else int(name[1])
                return QuantScheme(self.method, bits=bits, container="gguf")
            case SqueezeLlm(bits=bits):
                return QuantScheme(self.method, bits=bits, container="squeezellm")
            case LlmCompressor() as made:
                return _scheme_of(self.method, made)

    @property
    def needs_calibration(self) -> bool:
        """Whether the weights depend on the calibration text."""
        if isinstance(self.make, LlmCompressor):
            static = self.make.kv_cache or any(
                rule.activations and not rule.activations.dynamic for rule in self.make.layers
            )
            return bool(static) or any(step.do != "rtn" for step in self.make.steps)
        return isinstance(self.make, SqueezeLlm)

    def digest(self) -> str:
        """SHA-256 (hex) of what decides the weights, the twin's too: not the gate, not the name."""
        decides = self.model_dump(mode="json", include={"method", "make", "calibration", "engine"})
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _scheme_of(method: QuantMethod, made: LlmCompressor) -> QuantScheme:
    if not made.layers:
        return QuantScheme(method, bits=16, container=made.layout)
    kinds = {(r.weights.kind, r.weights.bits, _activation_bits(r)) for r in made.layers}
    if len(kinds) > 1:
        bits = max(rule.weights.bits for rule in made.layers)
        return QuantScheme(QuantMethod.MIXED, bits=bits, container=made.layout)
    first = made.layers[0]
    return QuantScheme(
        method,
        bits=first.weights.bits,
        activation_bits=_activation_bits(first),
        group_size=first.weights.group_size,
        symmetric=first.weights.symmetric,
        container=made.layout,
    )


def _activation_bits(rule: LayerRule) -> int:
    return rule.activations.bits if rule.activations else 16
