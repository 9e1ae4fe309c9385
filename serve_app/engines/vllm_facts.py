"""What a vLLM worker really computes with, asked of the worker itself.

Named to vLLM as `worker_extension_cls`, so it is mixed into its worker class and called with
`collective_rpc("quantile_facts")`. vLLM only logs which kernel it chose, once per process: the
layers of the loaded model know it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from serve_app.engines.vllm_memory import tensors_bytes

_KERNELS = ("kernel", "fp8_linear", "linear_kernel", "moe_kernel")
"""Attributes under which vLLM's schemes and methods keep the kernel that they chose."""
ARROW = " > "


class FactsReport:
    """Mixed into vLLM's worker; every name must be one that no worker has."""

    def quantile_facts(self) -> dict[str, str]:
        """`kernel.<kind of layer>`, `attention` and `kv_cache_bytes` of this rank."""
        runner = self.model_runner  # type: ignore[attr-defined]
        model = runner.get_model()
        facts = {
            f"kernel.{kind}": text for kind, text in sorted(kernels(model.named_modules()).items())
        }
        backends = attention_backends(model.named_modules())
        if backends:
            facts["attention"] = ", ".join(backends)
        return facts | {"kv_cache_bytes": str(tensors_bytes(runner.kv_caches))}


def flags(config: Any) -> dict[str, str]:
    """The sizes and switches that an engine really has, from vLLM's own configuration."""
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    values = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "max_model_len": model.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enforce_eager": model.enforce_eager,
        "kv_cache_dtype": cache.cache_dtype,
        "prefix_caching": cache.enable_prefix_caching,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def kernels(named_modules: Iterator[tuple[str, Any]]) -> dict[str, str]:
    """What multiplies by the weights, by kind of layer (`qkv_proj`, `lm_head`, ...).

    As `CompressedTensorsWNa16 > CPUWNA16LinearKernel > w4a16`: scheme, kernel, and its branch
    where it has several. Where layers of a kind differ, all are given with their numbers.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, layer in named_modules:
        kind = name.rpartition(".")[2]
        method = getattr(layer, "quant_method", None)
        multiplies = hasattr(layer, "input_size") or hasattr(layer, "moe_config")
        if method is not None and (multiplies or kind == "lm_head"):
            found[kind][kernel_of(layer, method)] += 1
    if "lm_head" in found:  # else the embedding is the head as well
        found.pop("embed_tokens", None)
    return {kind: _text(counts) for kind, counts in found.items()}


def kernel_of(layer: Any, method: Any) -> str:
    """Scheme or method, kernel and branch of one layer, as far as it has them."""
    scheme = getattr(layer, "scheme", None) or method
    held = (getattr(scheme, name, None) for name in _KERNELS)
    kernel = next((each for each in held if each is not None), None)
    names = [type(scheme).__name__, kernel and type(kernel).__name__, _branch(layer, kernel)]
    return ARROW.join(name for name in names if name)


def attention_backends(named_modules: Iterator[tuple[str, Any]]) -> list[str]:
    """Names of the attention backends that the layers chose."""
    chosen = (getattr(layer, "attn_backend", None) for _, layer in named_modules)
    return sorted({str(backend.get_name()) for backend in chosen if backend is not None})


def _branch(layer: Any, kernel: Any) -> str | None:
    """vLLM's CPU kernels choose once more, for each layer, when the weights are loaded."""
    uses_w4a8 = getattr(layer, "use_w4a8", None)
    if uses_w4a8 is not None:
        return "w4a8" if uses_w4a8 else f"w4a16 {getattr(layer, 'isa_hint', '')}".strip()
    chosen = getattr(kernel, "linear_method", None) or getattr(layer, "cpu_linear", None)
    if chosen is None:
        return None
    name: str = getattr(chosen, "__name__", type(chosen).__name__)
    if name == "<lambda>":  # around the operator, the last global name that it uses
        name = chosen.__code__.co_names[-1]
    return name.lstrip("_")


def _text(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({n} layers)" for name, n in sorted(counts.items()))
