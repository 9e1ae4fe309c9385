"""From a variant's arguments to its memory plan, and the check that its share covers the plan."""

from collections.abc import Callable

from serve_app.config.schema import EngineSettings, VariantArgs
from serve_app.domain.errors import PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import BP_TOTAL, format_bytes
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.footprint import Calibration, EngineSizes, footprint
from serve_app.planning.plan import CacheWish, MemoryPlan, plan_memory

Calibrations = Callable[[str, str, EngineSizes], Calibration | None]
"""From a checkpoint's uri, a GPU type and the sizes to what was measured there."""

DEFAULT_MAX_NUM_SEQS = 64
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048
"""Planned in place of vLLM's own defaults, which follow the whole card and not our share of it."""


def engine_sizes(engine: EngineSettings, facts: CheckpointFacts) -> EngineSizes:
    """The sizes that the footprint follows from; what the file leaves open is filled in."""
    seqs = engine.max_num_seqs or DEFAULT_MAX_NUM_SEQS
    captured = engine.max_cudagraph_capture_size
    return EngineSizes(
        max_model_len=engine.max_model_len or facts.shape.context_length,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(
            engine.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS, seqs
        ),
        max_cudagraph_capture_size=(
            0 if engine.enforce_eager else captured if captured is not None else seqs
        ),
        kv_dtype_bytes=_kv_dtype_bytes(engine),
        activation_dtype_bytes=4 if engine.dtype == "float32" else 2,
        block_size=int(engine.engine_args.get("block_size") or 16),
        tensor_parallel_size=engine.tensor_parallel_size,
    )


def _kv_dtype_bytes(engine: EngineSettings) -> int:
    if (engine.kv_cache_dtype or "auto") != "auto":
        return 1
    return 4 if engine.dtype == "float32" else 2


def cache_wish(args: VariantArgs, *, as_written: bool = True) -> CacheWish:
    """What the file says about the KV cache.

    As written, `kv_cache_memory_bytes` is what the engine will take. As intended, `concurrency`
    comes first, and the bytes that an earlier plan wrote are computed anew from it.
    """
    gpu = args.gpu
    concurrency = gpu.concurrency if gpu else None
    return CacheWish(
        kv_cache_bytes=args.engine.kv_cache_memory_bytes if as_written or not concurrency else None,
        concurrency=concurrency,
        fraction_bp=round(gpu.fraction * BP_TOTAL) if gpu and gpu.fraction else None,
    )


def variant_plan(
    args: VariantArgs,
    facts: CheckpointFacts,
    gpu: GpuProfile,
    calibrations: Calibrations | None = None,
    wish: CacheWish | None = None,
) -> MemoryPlan:
    """The plan of one variant on one GPU type; measured bytes replace estimates. Raises PlanError.

    `wish` is as the file has it unless given.
    """
    sizes = engine_sizes(args.engine, facts)
    measured = calibrations(args.checkpoint, gpu.name, sizes) if calibrations else None
    parts = footprint(facts, sizes, gpu, measured)
    return plan_memory(args.name, gpu, sizes, parts, wish or cache_wish(args))


def require_share(args: VariantArgs, plan: MemoryPlan) -> None:
    """Raise PlanError unless what the file sets aside covers what the engine will take."""
    settings, gpu = args.gpu, plan.gpu
    if settings is None or settings.fraction is None:
        raise PlanError(
            f"variant {args.name} has no gpu.fraction: on {gpu.name} it needs {plan.fraction:.4f}; "
            "`quantile plan FILE --write` fills it in"
        )
    if not plan.fits:
        raise PlanError(
            f"variant {args.name} needs {format_bytes(plan.need_bytes)} and a {gpu.name} has "
            f"{format_bytes(gpu.usable_bytes)}: `quantile plan` names what would fit"
        )
    if round(settings.fraction * BP_TOTAL) < plan.fraction_bp:
        share = format_bytes(int(settings.fraction * gpu.usable_bytes))
        raise PlanError(
            f"variant {args.name} has gpu.fraction {settings.fraction:.4f} of a {gpu.name} "
            f"({share}) and needs {plan.fraction:.4f} ({format_bytes(plan.need_bytes)}): raise the "
            "fraction, or lower concurrency, max_model_len or max_num_seqs "
            "(`quantile plan FILE --write` computes them)"
        )
    utilization = args.engine.gpu_memory_utilization
    if utilization is None or utilization > settings.fraction:
        raise PlanError(
            f"variant {args.name} has engine.gpu_memory_utilization {utilization or 0.92} (vLLM's "
            f"default is 0.92) beside gpu.fraction {settings.fraction:.4f}: vLLM's start-up check "
            f"would ask for more than the share; set it to {plan.gpu_memory_utilization:.4f} "
            "(`quantile plan FILE --write`)"
        )
    if args.engine.kv_cache_memory_bytes is None:
        raise PlanError(
            f"variant {args.name} has no engine.kv_cache_memory_bytes: vLLM would size its cache "
            f"by what neighbours leave free; set it to {plan.kv_cache_bytes} "
            "(`quantile plan FILE --write`)"
        )
