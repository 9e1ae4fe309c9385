"""Which quantization scheme runs on which GPU in vLLM 0.32, as data; what to do where it does not.

Read from vLLM's own classes: `declared_by` names the one whose `get_min_capability` gives the
floor, and a contract test compares. "Native" says that it computes as the scheme declares: FP8 W8A8
below compute capability 8.9 runs, but as 8-bit weights with 16-bit activations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.planning.shape import ModelShape

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


_WEIGHT_ONLY = frozenset({QuantMethod.GPTQ, QuantMethod.AWQ})
_OTHER_SCHEME = "take another variant: FP8 or 4-bit weights (GPTQ, AWQ) run from 7.5 on"

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
        never="vLLM 0.32 has no GGUF loader of its own",
        fix="install vllm-gguf-plugin, or convert to compressed-tensors",
    ),
    Rule(
        "SqueezeLLM",
        frozenset({QuantMethod.SQUEEZELLM}),
        TURING,
        never="vLLM 0.32 has no SqueezeLLM kernel",
        fix="take a GPTQ or AWQ variant",
    ),
)
"""The first rule that covers a scheme decides."""

FP8_CACHE = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2"})
FLASHINFER_HEAD_DIMS = frozenset({64, 128, 256, 512})


def check_support(
    scheme: QuantScheme,
    gpu: GpuProfile,
    dtype: str = "auto",
    kv_cache_dtype: str | None = None,
    shape: ModelShape | None = None,
) -> Support:
    """Whether vLLM 0.32 runs a checkpoint of this scheme on this GPU type, and how.

    `dtype` and `kv_cache_dtype` by vLLM's names. With a `shape`, its attention is checked too.
    """
    checks = list(_checks(scheme, gpu, dtype, kv_cache_dtype or "auto", shape))
    refused = [check for check in checks if not check.runs]
    if refused:
        return refused[0]
    reasons = "; ".join(check.reason for check in checks if check.reason)
    return Support(runs=True, native=all(check.native for check in checks), reason=reasons)


def _checks(
    scheme: QuantScheme, gpu: GpuProfile, dtype: str, cache: str, shape: ModelShape | None
) -> Iterator[Support]:
    yield _scheme(scheme, gpu)
    yield _dtype(scheme, gpu, dtype)
    if cache in FP8_CACHE:
        yield _fp8_cache(scheme, gpu, cache, shape)
    if shape is not None and shape.latent_dim and gpu.compute_capability < AMPERE:
        yield _refuse(
            f"latent attention needs FlashAttention, compute capability 8.0; {_has(gpu)}",
            "take an Ampere GPU or newer",
        )


def _scheme(scheme: QuantScheme, gpu: GpuProfile) -> Support:
    rule = next((rule for rule in RULES if rule.covers(scheme)), None)
    if rule is None:
        return _refuse(
            f"no rule for {scheme.describe()} ({scheme.container}): vLLM 0.32 has no kernel for it "
            "that QuanTile knows",
            "quantize to 4 or 8 bits",
        )
    if rule.never:
        return _refuse(f"{rule.name}: {rule.never}", rule.fix)
    have = gpu.compute_capability
    if have < rule.floor:
        return _refuse(
            f"{rule.name} needs compute capability {_dotted(rule.floor)}; {_has(gpu)}",
            rule.fix or _OTHER_SCHEME,
        )
    if rule.ceiling is not None and have >= rule.ceiling:
        return _refuse(
            f"{rule.name} runs below compute capability {_dotted(rule.ceiling)}; {_has(gpu)}",
            rule.fix,
        )
    if rule.native_floor is not None and have < rule.native_floor:
        return Support(True, False, f"{rule.name} on {gpu.name}: {rule.below_native}")
    return Support(True, True)


def _dtype(scheme: QuantScheme, gpu: GpuProfile, dtype: str) -> Support:
    if dtype == "float32" and scheme.method is not QuantMethod.UNQUANTIZED:
        return _refuse("the GPU kernels for quantized weights have no float32", "dtype: float16")
    if gpu.compute_capability >= AMPERE:
        return Support(True, True)
    if dtype == "bfloat16":
        return _refuse(f"bfloat16 needs compute capability 8.0; {_has(gpu)}", "set dtype: float16")
    if dtype == "auto":
        return Support(True, True, f"bfloat16 weights run as float16 on {gpu.name}")
    return Support(True, True)


def _fp8_cache(
    scheme: QuantScheme, gpu: GpuProfile, cache: str, shape: ModelShape | None
) -> Support:
    fix = "leave kv_cache_dtype at auto"
    latent = shape is not None and shape.latent_dim > 0
    if cache == "fp8_e5m2" and scheme.container == "fp8":
        return _refuse("vLLM refuses an fp8_e5m2 KV cache with an FP8 checkpoint", "take fp8_e4m3")
    if cache == "fp8_e5m2" and latent:
        return _refuse("no backend for latent attention has an fp8_e5m2 KV cache", "take fp8_e4m3")
    have = gpu.compute_capability
    if have >= ADA:
        return Support(True, True)
    if have < AMPERE or latent:
        return _refuse(f"an FP8 KV cache needs compute capability 8.9 here; {_has(gpu)}", fix)
    if cache != "fp8_e5m2":
        return _refuse(
            f"an FP8 KV cache of e4m3 needs compute capability 8.9; {_has(gpu)}",
            f"take fp8_e5m2, or {fix}",
        )
    if shape is not None and shape.head_dim not in FLASHINFER_HEAD_DIMS:
        return _refuse(
            f"an FP8 KV cache on {gpu.name} is FlashInfer's alone, which has heads of 64, 128, 256 "
            f"and 512; the model's have {shape.head_dim}",
            fix,
        )
    return Support(True, False, f"FP8 KV cache on {gpu.name}: FlashInfer converts at each read")


def _refuse(reason: str, fix: str) -> Support:
    return Support(runs=False, native=False, reason=reason, fix=fix)


def _has(gpu: GpuProfile) -> str:
    return f"{gpu.name} has {_dotted(gpu.compute_capability)}"


def _dotted(capability: ComputeCapability) -> str:
    return ".".join(map(str, capability))
