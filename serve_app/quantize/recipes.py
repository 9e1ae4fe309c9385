"""What a variant is made of: storage format, the steps that make it, and how wrong it may be.

Pure data. `serve_app.quantize.job` carries a recipe out; to add one, add a line to `RECIPES`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from serve_app.domain.errors import ConfigError
from serve_app.domain.quant import QuantMethod, QuantScheme

Step = Literal["smoothquant", "awq", "gptq", "rtn"]
"""smoothquant and awq rescale the weights; gptq and rtn (round to nearest) quantize them."""


@dataclass(frozen=True)
class Tolerance:
    """Largest mean |delta logprob| per token (nats) that passes, and the least share that agrees.

    `engine`: the engine against an fp32 forward pass of the same, dequantized weights: wrong
    kernels, layouts and scales show here. `quantization`: that forward pass against the base
    weights': a quantizer that went wrong shows here. `agreement`: share of decided positions
    (the reference gives one token at least 0.5) with the same most likely token. `reason` says
    what sets the numbers.
    """

    engine: float
    quantization: float
    agreement: float
    reason: str


@dataclass(frozen=True)
class Recipe:
    """How to make one variant from the base checkpoint.

    `engine_dtype` is the activation type that the engine must use to run the format as declared.
    """

    name: str
    scheme: QuantScheme
    steps: tuple[Step, ...]
    engine_dtype: Literal["float16", "bfloat16"]
    tolerance: Tolerance
    calibration_samples: int = 96
    calibration_length: int = 128

    def digest(self) -> str:
        """SHA-256 (hex) of what decides the weights: not the tolerance, not the engine's dtype."""
        decides = asdict(self)
        del decides["tolerance"], decides["engine_dtype"]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


_BF16_RUN = "the engine rounds activations to bf16 (3 significant digits) at every layer"
_FP16_RUN = "fp16 activations: 8 times finer than bf16, which some CPUs would also run as W4A8"

RECIPES: dict[str, Recipe] = {
    "baseline": Recipe(
        name="baseline",
        scheme=QuantScheme(QuantMethod.UNQUANTIZED, bits=16),
        steps=(),
        engine_dtype="bfloat16",
        tolerance=Tolerance(engine=0.01, quantization=0.0, agreement=0.98, reason=_BF16_RUN),
    ),
    "int8": Recipe(
        name="int8",
        scheme=QuantScheme(
            QuantMethod.INT8_W8A8, bits=8, activation_bits=8, container="compressed-tensors"
        ),
        steps=("smoothquant", "gptq"),
        engine_dtype="bfloat16",
        tolerance=Tolerance(
            engine=0.015,
            quantization=0.03,
            agreement=0.98,
            reason=_BF16_RUN + ", which moves values across int8 steps of the activations",
        ),
    ),
    "gptq": Recipe(
        name="gptq",
        scheme=QuantScheme(
            QuantMethod.GPTQ, bits=4, group_size=128, container="compressed-tensors"
        ),
        steps=("gptq",),
        engine_dtype="float16",
        tolerance=Tolerance(engine=0.003, quantization=0.03, agreement=0.995, reason=_FP16_RUN),
    ),
    "awq": Recipe(
        name="awq",
        scheme=QuantScheme(
            QuantMethod.AWQ,
            bits=4,
            group_size=128,
            symmetric=False,
            container="compressed-tensors",
        ),
        steps=("awq", "rtn"),
        engine_dtype="float16",
        tolerance=Tolerance(engine=0.003, quantization=0.05, agreement=0.995, reason=_FP16_RUN),
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `ConfigError` with the known names."""
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"unknown recipe {name!r}: need one of {', '.join(RECIPES)}") from None
