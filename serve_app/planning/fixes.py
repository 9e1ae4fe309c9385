"""What would make a variant fit: the nearest changes, each tried on the plan before it is named."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from serve_app.domain.errors import PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.units import format_bytes
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.footprint import Calibrations, EngineSizes, footprint
from serve_app.planning.plan import CacheWish, MemoryPlan, plan_memory
from serve_app.planning.weights import weights_from_shape
from serve_app.quantize.support_rules import ADA

_CONTEXT_STEP = 1024
_FOUR_BITS = QuantScheme(QuantMethod.GPTQ, bits=4, group_size=128, container="compressed-tensors")


@dataclass(frozen=True)
class Trial:
    """Tries changes of a variant that does not fit."""

    plan: MemoryPlan
    facts: CheckpointFacts
    wish: CacheWish
    runs_on: Callable[[GpuProfile, QuantScheme], bool]
    """Whether a GPU type has the kernels."""
    calibrations: Calibrations | None = None

    def fits(
        self,
        *,
        sizes: EngineSizes | None = None,
        gpu: GpuProfile | None = None,
        facts: CheckpointFacts | None = None,
    ) -> bool:
        """Whether the variant fits with this in place of what it has."""
        sizes, gpu, known = sizes or self.plan.sizes, gpu or self.plan.gpu, facts or self.facts
        if not self.runs_on(gpu, known.scheme):
            return False
        measured = None
        if self.calibrations and facts is None:
            measured = self.calibrations(known.uri, gpu.name, sizes)
        parts = footprint(known, sizes, gpu, measured)
        try:
            return plan_memory(self.plan.variant, gpu, sizes, parts, self.wish).fits
        except PlanError:
            return False


def nearest_fixes(trial: Trial, gpus: Iterable[GpuProfile]) -> list[str]:
    """Changes of one setting with which the variant fits, the least painful first.

    `gpus` are the other types that it may move to, of which the smallest is named. Empty when no
    single change helps.
    """
    return [
        *_less_concurrency(trial.plan),
        *_shorter_context(trial),
        *_smaller_cache_type(trial),
        *_other_gpu(trial, gpus),
        *_fewer_bits(trial),
        *_more_ranks(trial),
    ]


def _free_for_cache(plan: MemoryPlan) -> int:
    return plan.gpu.usable_bytes - plan.footprint.fixed_bytes


def _less_concurrency(plan: MemoryPlan) -> Iterator[str]:
    requests = _free_for_cache(plan) / plan.footprint.kv_bytes_per_request
    tenths = int(requests * 10 - 0.5)  # room for the block that vLLM keeps
    if 10 <= tenths < plan.concurrency * 10:
        yield f"gpu.concurrency {tenths / 10:g} (have {plan.concurrency:.3g})"


def _shorter_context(trial: Trial) -> Iterator[str]:
    if trial.wish.concurrency is None:
        return  # the bytes are given: a shorter context changes nothing
    have = trial.plan.sizes
    low, high = 0, have.max_model_len // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        sizes = replace(have, max_model_len=middle * _CONTEXT_STEP)
        low, high = (middle, high) if trial.fits(sizes=sizes) else (low, middle - 1)
    if low:
        yield f"engine.max_model_len {low * _CONTEXT_STEP} (have {have.max_model_len})"


def _smaller_cache_type(trial: Trial) -> Iterator[str]:
    sizes, gpu = trial.plan.sizes, trial.plan.gpu
    if sizes.kv_dtype_bytes == 1 or gpu.compute_capability < ADA:
        return
    if trial.fits(sizes=replace(sizes, kv_dtype_bytes=1)):
        yield "engine.kv_cache_dtype fp8 (judge the quality: half the bytes per token)"


def _other_gpu(trial: Trial, gpus: Iterable[GpuProfile]) -> Iterator[str]:
    for gpu in sorted(gpus, key=lambda gpu: gpu.usable_bytes):
        if gpu.name != trial.plan.gpu.name and trial.fits(gpu=gpu):
            yield f"gpu.type {gpu.name} ({format_bytes(gpu.usable_bytes)})"
            return


def _fewer_bits(trial: Trial) -> Iterator[str]:
    facts = trial.facts
    if facts.scheme.bits <= _FOUR_BITS.bits:
        return
    weights = weights_from_shape(facts.shape, _FOUR_BITS)
    if trial.fits(facts=replace(facts, scheme=_FOUR_BITS, weights=weights)):
        yield f"a 4-bit checkpoint ({format_bytes(weights.total_bytes)} of weights)"


def _more_ranks(trial: Trial) -> Iterator[str]:
    have = trial.plan.sizes
    for ranks in (2, 4, 8):
        divides = trial.facts.shape.n_heads % ranks == 0
        sizes = replace(have, tensor_parallel_size=ranks)
        if ranks > have.tensor_parallel_size and divides and trial.fits(sizes=sizes):
            yield f"engine.tensor_parallel_size {ranks} (whole GPUs)"
            return
