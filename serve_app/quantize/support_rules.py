"""Which stored format runs on which GPU in vLLM 0.32, as data; what to do where it does not.

Read from vLLM's own classes: `declared_by` names the one whose `get_min_capability` gives the
floor, and a contract test compares. "Native" says that it computes as the scheme declares: FP8 W8A8
below compute capability 8.9 runs, but as 8-bit weights with 16-bit activations.
"""

from dataclasses import dataclass
from typing import Literal

from serve_app.domain.quant import QuantMethod, QuantScheme

ComputeCapability = tuple[int, int]
TURING, AMPERE, ADA, HOPPER, BLACKWELL = (7, 5), (8, 0), (8, 9), (9, 0), (10, 0)

_KERNELS = "vllm.model_executor.kernels.linear.mixed_precision"
_SCHEMES = "vllm.model_executor.layers.quantization.compressed_tensors.schemes"
_CONFIGS = "vllm.model_executor.layers.quantization"


@dataclass(frozen=True)
class Support:
    """Whether a checkpoint runs on a GPU type. `reason` and `fix` are empty where there is none;
    a checkpoint that runs, but not natively, has a reason."""

    runs: bool
    native: bool
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Stored:
    """One precision of a checkpoint, with what decides about kernels and a scheme does not say.

    `per` is what shares a weight's scale; `static` and `symmetric_activations` are about scales of
    activations; `group_order` is a g_idx in the checkpoint (activation order "group").
    """

    scheme: QuantScheme
    per: Literal["tensor", "channel", "group", "block"] = "group"
    floating: bool = False
    """Weights are floating-point numbers: FP8; NVFP4 and MXFP4 with 4 bits."""
    floating_activations: bool = False
    static: bool = False
    symmetric_activations: bool = True
    group_order: bool = False
    gguf_type: str = ""


@dataclass(frozen=True)
class Rule:
    """The GPUs of some schemes: compute capability from `floor` on, below `ceiling`.

    None for methods, bits, activation bits, containers or symmetry means any. `native_floor` is
    where the declared precision is computed natively; `below_native` says what happens below.
    """

    name: str
    methods: frozenset[QuantMethod]
    floor: ComputeCapability
    declared_by: str = ""
    ceiling: ComputeCapability | None = None
    native_floor: ComputeCapability | None = None
    native_declared_by: str = ""
    below_native: str = ""
    bits: frozenset[int] | None = None
    activation_bits: int | None = None
    container: str | None = None
    symmetric: bool | None = None
    never: str = ""
    """Not empty: it runs on no GPU, for this reason."""
    fix: str = ""

    def covers(self, scheme: QuantScheme) -> bool:
        """Whether the rule is about this scheme."""
        return (
            scheme.method in self.methods
            and (self.bits is None or scheme.bits in self.bits)
            and self.activation_bits in (None, scheme.activation_bits)
            and self.container in (None, scheme.container)
            and self.symmetric in (None, scheme.symmetric)
        )


_WEIGHT_ONLY = frozenset({QuantMethod.GPTQ, QuantMethod.AWQ, QuantMethod.RTN})
OTHER_SCHEME = "take another variant: FP8 or 4-bit weights (GPTQ, AWQ) run from 7.5 on"

RULES: tuple[Rule, ...] = (
    Rule("unquantized", frozenset({QuantMethod.UNQUANTIZED}), TURING),
    Rule(
        "INT8 W8A8",
        frozenset({QuantMethod.INT8_W8A8}),
        TURING,
        declared_by=f"{_SCHEMES}.CompressedTensorsW8A8Int8",
        ceiling=BLACKWELL,  # docs.vllm.ai, features/quantization/int8: not from 10.0 on
        fix="take an FP8 variant there, or a Turing to Hopper GPU",
    ),
    Rule(
        "FP8 weights, 16-bit activations",
        frozenset({QuantMethod.FP8}),
        TURING,
        declared_by=f"{_SCHEMES}.CompressedTensorsW8A16Fp8",
        activation_bits=16,
    ),
    Rule(
        "FP8 W8A8",
        frozenset({QuantMethod.FP8}),
        TURING,
        declared_by=f"{_CONFIGS}.fp8.Fp8Config",
        native_floor=ADA,
        native_declared_by=f"{_SCHEMES}.CompressedTensorsW8A8Fp8",
        below_native="FP8 Marlin: 8-bit weights with 16-bit activations, so memory but no compute "
        "is saved",
    ),
    Rule(
        "4-bit weights, 8-bit activations",
        _WEIGHT_ONLY,
        HOPPER,
        declared_by=f"{_SCHEMES}.CompressedTensorsW4A8Fp8",
        ceiling=(9, 1),  # exactly 9.0, and FP8 activations
        bits=frozenset({4}),
        activation_bits=8,
        fix="take a W4A16 variant, or an H100 or H200",
    ),
    Rule(
        "asymmetric GPTQ",
        frozenset({QuantMethod.GPTQ}),
        TURING,
        container="gptq",
        symmetric=False,
        never="vLLM's gptq loader takes symmetric weights only",
        fix="quantize with sym=True, or as compressed-tensors",
    ),
    Rule(
        "GPTQ (gptq container)",
        frozenset({QuantMethod.GPTQ}),
        TURING,  # its configuration says 6.0, its kernel and vLLM's builds do not
        declared_by=f"{_KERNELS}.marlin.MarlinLinearKernel",
        bits=frozenset({4, 8}),
        container="gptq",
    ),
    Rule(
        "AWQ (awq container)",
        frozenset({QuantMethod.AWQ}),
        TURING,
        declared_by=f"{_CONFIGS}.auto_awq.AutoAWQConfig",
        bits=frozenset({4}),
        container="awq",
    ),
    Rule(
        "asymmetric 8-bit weights",
        _WEIGHT_ONLY,
        HOPPER,
        declared_by=f"{_KERNELS}.machete.MacheteLinearKernel",
        ceiling=(9, 1),
        bits=frozenset({8}),
        symmetric=False,
        fix="quantize symmetric: Marlin has no 8-bit zero points",
    ),
    Rule(
        "4- or 8-bit weights (compressed-tensors)",
        _WEIGHT_ONLY,
        TURING,
        declared_by=f"{_SCHEMES}.CompressedTensorsWNA16",
        bits=frozenset({4, 8}),
        activation_bits=16,
        container="compressed-tensors",
    ),
    Rule(
        "2-, 3-, 5-, 6- and 7-bit weights",
        _WEIGHT_ONLY,
        TURING,
        bits=frozenset({2, 3, 5, 6, 7}),
        never="vLLM 0.32 has kernels for 4 and 8 bits only",
        fix="quantize to 4 or 8 bits, or serve the dense twin",
    ),
    Rule(
        "mixed precision",
        frozenset({QuantMethod.MIXED}),
        TURING,
        declared_by=f"{_SCHEMES}.CompressedTensorsWNA16",
        native_floor=ADA,
        below_native="FP8 layers, if it has any, run as 8-bit weights with 16-bit activations",
    ),
    Rule(
        "GGUF",
        frozenset({QuantMethod.GGUF}),
        TURING,
        never="vLLM 0.32 has no GGUF loader of its own; vllm-gguf-plugin has one, which QuanTile "
        "mends and has not run on a GPU yet",
        fix="serve it on CPU with `engine: {kind: llamacpp}`, or take a GPTQ or AWQ variant",
    ),
    Rule(
        "SqueezeLLM",
        frozenset({QuantMethod.SQUEEZELLM}),
        TURING,  # plain torch, in QuanTile's own plugin of vLLM
        declared_by="serve_app.engines.vllm_squeezellm.SqueezeLLMConfig",
    ),
)
"""The first rule that covers a scheme decides."""
