"""Whether vLLM 0.32 runs a checkpoint on a GPU type, by the rules of `support_rules`."""

from collections.abc import Iterator
from typing import Protocol

from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.quantize.support_rules import (
    ADA,
    AMPERE,
    OTHER_SCHEME,
    RULES,
    ComputeCapability,
    Stored,
    Support,
)

FP8_CACHE = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2"})
FLASHINFER_HEAD_DIMS = frozenset({64, 128, 256, 512})


class Attention(Protocol):
    """What a model's attention is like: `planning.shape.ModelShape` is one."""

    @property
    def head_dim(self) -> int:
        """Numbers of one head's query."""
        ...

    @property
    def latent_dim(self) -> int:
        """Above 0 for multi-head latent attention."""
        ...


def check_support(
    scheme: QuantScheme,
    gpu: GpuProfile,
    dtype: str = "auto",
    kv_cache_dtype: str | None = None,
    shape: Attention | None = None,
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
    scheme: QuantScheme, gpu: GpuProfile, dtype: str, cache: str, shape: Attention | None
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
            rule.fix or OTHER_SCHEME,
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
    scheme: QuantScheme, gpu: GpuProfile, cache: str, shape: Attention | None
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


def check_stored(stored: Stored, gpu: GpuProfile) -> Support:
    """The same for one precision whose details are known: act-order, FP4, kind of activations."""
    scheme = stored.scheme
    if stored.group_order:
        return _refuse(
            "vLLM 0.32 refuses g_idx (group activation order is no longer supported)",
            "quantize with activation_order: static, which costs nothing",
        )
    if stored.floating and scheme.bits == 4:
        return _refuse(
            "QuanTile reads no NVFP4 and MXFP4 checkpoints",
            "take an FP8 variant, or 4-bit integers (GPTQ, AWQ)",
        )
    if scheme.bits == 4 and scheme.activation_bits == 8 and not stored.floating_activations:
        return _refuse(
            "4-bit weights with 8-bit integer activations: vLLM 0.32 has a kernel for CPUs only",
            "take a W4A16 variant, or FP8 activations on an H100 or H200",
        )
    return _scheme(scheme, gpu)


def _refuse(reason: str, fix: str) -> Support:
    return Support(runs=False, native=False, reason=reason, fix=fix)


def _has(gpu: GpuProfile) -> str:
    return f"{gpu.name} has {_dotted(gpu.compute_capability)}"


def _dotted(capability: ComputeCapability) -> str:
    return ".".join(map(str, capability))
