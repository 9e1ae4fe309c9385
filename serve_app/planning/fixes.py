"""What would make a variant fit: the nearest changes, each tried on the plan before it is named."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from serve_app.domain.errors import PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.units import format_bytes
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.footprint import EngineSizes, footprint
from serve_app.planning.plan import CacheWish, MemoryPlan, plan_memory
from serve_app.planning.weights import weights_from_shape

FP8_CACHE_CAPABILITY = (8, 9)
_CONTEXT_STEP = 1024
_FOUR_BITS = QuantScheme(QuantMethod.GPTQ, bits=4, group_size=128, container="compressed-tensors")


def nearest_fixes(
    plan: MemoryPlan, facts: CheckpointFacts, wish: CacheWish, gpus: Iterable[GpuProfile]
) -> list[str]:
    """Changes of one setting with which the variant fits, the least painful first.

    `gpus` are the other types that it may move to, of which the smallest is named. Empty when no
    single change helps.
    """
    return [
        *_less_concurrency(plan),
        *_shorter_context(plan, facts, wish),
        *_smaller_cache_type(plan, facts, wish),
        *_other_gpu(plan, facts, wish, gpus),
        *_fewer_bits(plan, facts, wish),
        *_more_ranks(plan, facts, wish),
    ]


def _fits(
    plan: MemoryPlan,
    facts: CheckpointFacts,
    wish: CacheWish,
    sizes: EngineSizes | None = None,
    gpu: GpuProfile | None = None,
) -> bool:
    sizes, gpu = sizes or plan.sizes, gpu or plan.gpu
    try:
        return plan_memory(plan.variant, gpu, sizes, footprint(facts, sizes, gpu), wish).fits
    except PlanError:
        return False


def _free_for_cache(plan: MemoryPlan) -> int:
    return plan.gpu.usable_bytes - plan.footprint.fixed_bytes


def _less_concurrency(plan: MemoryPlan) -> Iterator[str]:
    requests = _free_for_cache(plan) / plan.footprint.kv_bytes_per_request
    tenths = int(requests * 10 - 0.5)  # room for the block that vLLM keeps
    if 10 <= tenths < plan.concurrency * 10:
        yield f"gpu.concurrency {tenths / 10:g} (have {plan.concurrency:.3g})"


def _shorter_context(plan: MemoryPlan, facts: CheckpointFacts, wish: CacheWish) -> Iterator[str]:
    if wish.concurrency is None:
        return  # the bytes are given: a shorter context changes nothing
    low, high = 0, plan.sizes.max_model_len // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        sizes = replace(plan.sizes, max_model_len=middle * _CONTEXT_STEP)
        low, high = (middle, high) if _fits(plan, facts, wish, sizes) else (low, middle - 1)
    if low:
        yield f"engine.max_model_len {low * _CONTEXT_STEP} (have {plan.sizes.max_model_len})"


def _smaller_cache_type(plan: MemoryPlan, facts: CheckpointFacts, wish: CacheWish) -> Iterator[str]:
    if plan.sizes.kv_dtype_bytes == 1 or plan.gpu.compute_capability < FP8_CACHE_CAPABILITY:
        return
    if _fits(plan, facts, wish, replace(plan.sizes, kv_dtype_bytes=1)):
        yield "engine.kv_cache_dtype fp8 (judge the quality: half the bytes per token)"


def _other_gpu(
    plan: MemoryPlan, facts: CheckpointFacts, wish: CacheWish, gpus: Iterable[GpuProfile]
) -> Iterator[str]:
    for gpu in sorted(gpus, key=lambda gpu: gpu.usable_bytes):
        if gpu.name != plan.gpu.name and _fits(plan, facts, wish, gpu=gpu):
            yield f"gpu.type {gpu.name} ({format_bytes(gpu.usable_bytes)})"
            return


def _fewer_bits(plan: MemoryPlan, facts: CheckpointFacts, wish: CacheWish) -> Iterator[str]:
    if facts.scheme.bits <= _FOUR_BITS.bits:
        return
    packed = replace(facts, scheme=_FOUR_BITS, weights=weights_from_shape(facts.shape, _FOUR_BITS))
    if _fits(plan, packed, wish):
        yield f"a 4-bit checkpoint ({format_bytes(packed.weights.total_bytes)} of weights)"


def _more_ranks(plan: MemoryPlan, facts: CheckpointFacts, wish: CacheWish) -> Iterator[str]:
    have = plan.sizes.tensor_parallel_size
    for ranks in (2, 4, 8):
        sizes = replace(plan.sizes, tensor_parallel_size=ranks)
        divides = facts.shape.n_heads % ranks == 0
        if ranks > have and divides and _fits(plan, facts, wish, sizes):
            yield f"engine.tensor_parallel_size {ranks} (whole GPUs)"
            return
