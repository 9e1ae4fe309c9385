"""One answer to "which engine runs this, here, and as what": for builds, preflight and the docs.

The data are in `support_rules` (GPUs) and `support_cpu`; the planner asks `support_gpu`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec

from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.node.host import cpu_flags
from serve_app.quantize.recipes import (
    Copy,
    Gguf,
    Gptq,
    LayerRule,
    LlmCompressor,
    Recipe,
    SqueezeLlm,
)
from serve_app.quantize.support_cpu import Cpu, check_cpu, cpu_kind
from serve_app.quantize.support_gpu import check_stored, check_support
from serve_app.quantize.support_rules import Stored, Support

LLAMACPP_WHEEL, GGUF_PLUGIN = "xllamacpp", "vllm_gguf_plugin"


class How(StrEnum):
    """As what a variant is served."""

    AS_ITSELF = "itself"
    AS_TWIN = "dense twin"
    REFUSED = "refused"


@dataclass(frozen=True)
class Served:
    """The answer. `engine` is the one that serves it, or its twin; None where it is refused.

    `native` is False where the engine computes otherwise than declared; `reason` says how, or why
    it is not served as itself, and `fix` what to do about it.
    """

    engine: str | None
    how: How
    native: bool = True
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Format:
    """What a variant's files hold: one or several precisions, and scales for a KV cache of FP8."""

    parts: tuple[Stored, ...]
    fp8_cache: bool = False


def format_of(recipe: Recipe) -> Format:
    """What the recipe's variant will hold."""
    match recipe.make:
        case Gguf(type=name):
            return Format((Stored(recipe.scheme, gguf_type=name),))
        case LlmCompressor() as made:
            order = any(
                isinstance(step, Gptq) and step.activation_order == "group" for step in made.steps
            )
            parts = [_stored(recipe.method, made, rule, order) for rule in made.layers]
            plain = Stored(QuantScheme(QuantMethod.UNQUANTIZED, bits=16))
            return Format(tuple(parts) or (plain,), fp8_cache=made.kv_cache is not None)
        case Copy() | SqueezeLlm():
            return Format((Stored(recipe.scheme, per="channel"),))


def served_here(
    stored: Format,
    engine: str,
    dtype: str,
    machine: Cpu | GpuProfile,
    *,
    has_llamacpp: bool = True,
    has_gguf_plugin: bool = False,
) -> Served:
    """Which engine serves the format on this kind of machine: as itself, as its twin, or not.

    `engine` is `vllm` or `llamacpp`, `dtype` the activations' by vLLM's names.
    """
    is_gguf = any(part.scheme.method is QuantMethod.GGUF for part in stored.parts)
    if engine == "llamacpp" or is_gguf:
        return _gguf(stored, engine, machine, has_llamacpp, has_gguf_plugin)
    found = list(_checks(stored, machine, "auto"))
    if lacking := next((each for each in found if not each.runs), None):
        return Served("vllm", How.AS_TWIN, False, lacking.reason, lacking.fix)
    found = list(_checks(stored, machine, dtype))
    if wrong := next((each for each in found if not each.runs), None):
        return Served(None, How.REFUSED, False, wrong.reason, wrong.fix)
    reasons = dict.fromkeys(each.reason for each in found if each.reason)
    native = all(each.native for each in found)
    return Served("vllm", How.AS_ITSELF, native, "; ".join(reasons))


def runs_here(recipe: Recipe) -> bool:
    """True: an engine on this machine runs the format itself. False: it is judged as its twin.

    Raises `EngineError` where vLLM is a GPU build and the GPU cannot be asked.
    """
    return here(recipe).how is How.AS_ITSELF


def here(recipe: Recipe) -> Served:
    """`served_here` of the recipe's variant on this machine, with the engines installed on it."""
    return served_here(
        format_of(recipe),
        recipe.engine.kind,
        recipe.engine.dtype,
        this_machine(),
        has_llamacpp=installed(LLAMACPP_WHEEL),
        has_gguf_plugin=installed(GGUF_PLUGIN),
    )


def installed(module: str) -> bool:
    """Whether this environment has it; nothing is imported."""
    return find_spec(module) is not None


def this_machine() -> Cpu | GpuProfile:
    """The CPU's kind with vLLM's CPU build; the first visible GPU with its GPU build."""
    from serve_app.engines.vllm_engine import runs_on_cpu

    if runs_on_cpu():
        return cpu_kind(cpu_flags())
    from serve_app.node.nvml import assigned_gpus

    return assigned_gpus(1)[0].profile()


def _stored(method: QuantMethod, made: LlmCompressor, rule: LayerRule, group_order: bool) -> Stored:
    weights, activations = rule.weights, rule.activations
    scheme = QuantScheme(
        _method(method, rule),
        bits=weights.bits,
        activation_bits=activations.bits if activations else 16,
        group_size=weights.group_size,
        symmetric=weights.symmetric,
        container=made.layout,
    )
    return Stored(
        scheme,
        per="channel" if weights.per == "token" else weights.per,
        floating=weights.kind == "float",
        floating_activations=activations is not None and activations.kind == "float",
        static=activations is not None and not activations.dynamic,
        symmetric_activations=activations is None or activations.symmetric,
        group_order=group_order,
    )


def _method(method: QuantMethod, rule: LayerRule) -> QuantMethod:
    """The method of one precision of a mixed variant."""
    if rule.weights.kind == "float" and rule.weights.bits == 8:
        return QuantMethod.FP8
    if rule.activations and rule.activations.bits == rule.weights.bits == 8:
        return QuantMethod.INT8_W8A8
    if method in (QuantMethod.MIXED, QuantMethod.UNQUANTIZED):
        return QuantMethod.GPTQ if rule.weights.symmetric else QuantMethod.AWQ
    return method


def _checks(stored: Format, machine: Cpu | GpuProfile, dtype: str) -> Iterator[Support]:
    for part in stored.parts:
        if isinstance(machine, Cpu):
            yield check_cpu(part, machine, dtype)
        else:
            yield check_stored(part, machine)
            if dtype != "auto":
                yield check_support(part.scheme, machine, dtype)
    if stored.fp8_cache and not isinstance(machine, Cpu):
        plain = QuantScheme(QuantMethod.UNQUANTIZED, bits=16)
        yield check_support(plain, machine, kv_cache_dtype="fp8_e4m3")


def _gguf(
    stored: Format,
    engine: str,
    machine: Cpu | GpuProfile,
    has_llamacpp: bool,
    has_plugin: bool,
) -> Served:
    part = stored.parts[0]
    if part.scheme.method is not QuantMethod.GGUF:
        reason = f"llama.cpp reads GGUF files, not {part.scheme.container}"
        return Served(None, How.REFUSED, False, reason, "set engine.kind: vllm")
    if engine == "llamacpp":
        note = "" if isinstance(machine, Cpu) else "on the machine's CPU: the GPU is not used"
        if has_llamacpp:
            return Served("llamacpp", How.AS_ITSELF, reason=note)
        fix = "pip install 'quantile-serve[llamacpp]'"
        return Served("vllm", How.AS_TWIN, False, "llama.cpp is not installed", fix)
    if not isinstance(machine, Cpu):
        found = check_support(part.scheme, machine)
        return Served("vllm", How.AS_TWIN, False, found.reason, found.fix)
    fix = "set engine.kind: llamacpp"
    if not has_plugin:
        reason = "vLLM 0.32 has no GGUF loader: vllm-gguf-plugin is not installed"
        return Served("vllm", How.AS_TWIN, False, reason, fix)
    if part.gguf_type == "F16":
        reason = "vLLM's GGUF plugin fails on F16: 'no module or parameter named "
        return Served("vllm", How.AS_TWIN, False, reason + "embed_tokens.weight'", fix)
    note = "each product unpacks the weights anew: right, and slow"
    return Served("vllm", How.AS_ITSELF, reason=note)
