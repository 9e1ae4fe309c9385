"""From what one replica asks for to the bytes that it gets: the memory plan of one variant.

The byte plan is the truth and Ray's fraction is bookkeeping: with
`fraction >= need / usable`, every set of replicas that Ray may put on one GPU (fractions summing to
at most 1) fits in its bytes. Both vLLM settings are planned: `kv_cache_memory_bytes`, the size that
no neighbour can disturb, and `gpu_memory_utilization`, which vLLM's start-up check reads even so.
"""

from dataclasses import dataclass
from typing import Any

from serve_app.domain.errors import PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import BP_TOTAL, format_bytes
from serve_app.planning.footprint import EngineSizes, Footprint

DEFAULT_CONCURRENCY = 4.0
"""Requests at full context, where a variant states neither that, nor bytes, nor a fraction."""


@dataclass(frozen=True)
class CacheWish:
    """How large the KV cache shall be; the first of these that is set decides."""

    kv_cache_bytes: int | None = None
    """Per GPU."""
    concurrency: float | None = None
    fraction_bp: int | None = None
    """The cache takes what this share of the GPU leaves."""


@dataclass(frozen=True)
class MemoryPlan:
    """What one replica of a variant takes of each GPU that it runs on."""

    variant: str
    gpu: GpuProfile
    sizes: EngineSizes
    footprint: Footprint
    kv_cache_bytes: int

    @property
    def need_bytes(self) -> int:
        """All that this engine ever holds on one GPU."""
        return self.footprint.fixed_bytes + self.kv_cache_bytes

    @property
    def fits(self) -> bool:
        """Whether one replica fits on the GPU at all."""
        return self.need_bytes <= self.gpu.usable_bytes

    @property
    def fraction_bp(self) -> int:
        """Least share that covers the need, in Ray's grain; whole GPUs for tensor parallelism."""
        if self.sizes.tensor_parallel_size > 1 and self.fits:
            return BP_TOTAL
        return -(-self.need_bytes * BP_TOTAL // self.gpu.usable_bytes)

    @property
    def fraction(self) -> float:
        """`fraction_bp` as Ray's `num_gpus` takes it."""
        return self.fraction_bp / BP_TOTAL

    @property
    def gpu_memory_utilization(self) -> float:
        """For vLLM's start-up check, which is taken after the context exists: rounded down, so that
        a GPU filled to the last planned byte still starts its last engine."""
        inside = self.need_bytes - self.footprint.context.bytes
        return inside * BP_TOTAL // self.gpu.usable_bytes / BP_TOTAL

    @property
    def concurrency(self) -> float:
        """Requests at full context that the cache holds at once."""
        return self.kv_cache_bytes / self.footprint.kv_bytes_per_request

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.kv_cache_bytes // self.footprint.kv_bytes_per_token

    def engine_settings(self) -> dict[str, Any]:
        """The planned numbers by the names that vLLM and our config files use.

        An eager engine captures no graphs: it has no largest one.
        """
        captured = self.sizes.max_cudagraph_capture_size
        return {
            "max_model_len": self.sizes.max_model_len,
            "max_num_seqs": self.sizes.max_num_seqs,
            "max_num_batched_tokens": self.sizes.max_num_batched_tokens,
            **({"max_cudagraph_capture_size": captured} if captured else {}),
            "kv_cache_memory_bytes": self.kv_cache_bytes,
            "gpu_memory_utilization": self.gpu_memory_utilization,
        }


def plan_memory(
    variant: str, gpu: GpuProfile, sizes: EngineSizes, footprint: Footprint, wish: CacheWish
) -> MemoryPlan:
    """The plan of one variant on one GPU type; whether it `fits` is the caller's to ask.

    Raises PlanError for a cache that cannot hold one request of `max_model_len` tokens: vLLM would
    refuse to start.
    """
    plan = MemoryPlan(variant, gpu, sizes, footprint, _cache_bytes(gpu, footprint, sizes, wish))
    if plan.kv_cache_bytes < footprint.kv_bytes_per_request:
        tokens = max(plan.kv_cache_bytes, 0) // footprint.kv_bytes_per_token
        raise PlanError(
            f"variant {variant} on {gpu.name}: the KV cache would have "
            f"{format_bytes(max(plan.kv_cache_bytes, 0))} ({tokens:,} tokens), and one request of "
            f"{sizes.max_model_len:,} tokens needs {format_bytes(footprint.kv_bytes_per_request)}: "
            "give it more, or lower max_model_len"
        )
    return plan


def _cache_bytes(gpu: GpuProfile, footprint: Footprint, sizes: EngineSizes, wish: CacheWish) -> int:
    if wish.kv_cache_bytes is not None:
        return wish.kv_cache_bytes
    if wish.concurrency is None and wish.fraction_bp is not None:
        share = wish.fraction_bp * gpu.usable_bytes // BP_TOTAL
        return share - footprint.fixed_bytes
    block = footprint.kv_bytes_per_token * sizes.block_size
    concurrency = wish.concurrency or DEFAULT_CONCURRENCY
    blocks = -(-int(concurrency * footprint.kv_bytes_per_request) // block)
    return (blocks + 1) * block  # vLLM keeps one block for itself
