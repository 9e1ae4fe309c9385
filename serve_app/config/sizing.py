"""From a variant's arguments to its memory plan, and the check that its share covers the plan."""

import dataclasses

from serve_app.config.schema import EngineSettings, VariantArgs
from serve_app.domain.errors import ConfigError, PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.units import BP_TOTAL, format_bytes
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.footprint import Calibrations, EngineSizes, footprint
from serve_app.planning.plan import CacheWish, MemoryPlan, plan_memory
from serve_app.planning.weights import weights_from_shape
from serve_app.quantize.support_gpu import check_support
from serve_app.quantize.support_rules import Support

DEFAULT_MAX_NUM_SEQS = 64
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048
"""Planned in place of vLLM's own defaults, which follow the whole card and not our share of it."""

BLOCK_SIZE = 16
DEFAULT_UTILIZATION = 0.92
"""vLLM's own: what it takes of a device where the file states neither bytes nor a share."""


LATENT_BLOCK_SIZE = 128
"""Tokens per cache block that vLLM's backends for latent attention take at most; others take 16."""

UNPLANNED_ARGS = {
    "speculative_config": "a draft model",
    "enable_lora": "adapters",
    "pipeline_parallel_size": "layers spread over GPUs",
    "num_gpu_blocks_override": "another cache than kv_cache_memory_bytes",
    "cudagraph_capture_sizes": "graphs beyond max_cudagraph_capture_size",
    "compilation_config": "graphs beyond max_cudagraph_capture_size",
    "enable_sleep_mode": "another allocator",
    "cpu_offload_gb": "weights elsewhere",
}
"""vLLM's arguments that change what an engine takes in ways that the plan does not know."""


def with_planned_sizes(engine: EngineSettings) -> EngineSettings:
    """The settings with what the file leaves open as it is planned, so that vLLM's own defaults,
    which follow the whole card, never apply."""
    seqs = engine.max_num_seqs or DEFAULT_MAX_NUM_SEQS
    captured = None if engine.enforce_eager else engine.max_cudagraph_capture_size or seqs
    return engine.model_copy(
        update={
            "max_num_seqs": seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens
            or max(DEFAULT_MAX_NUM_BATCHED_TOKENS, seqs),
            "max_cudagraph_capture_size": captured,
        }
    )


def engine_sizes(engine: EngineSettings, facts: CheckpointFacts) -> EngineSizes:
    """The sizes that the footprint follows from. Raises ConfigError for a wrong block size."""
    planned = with_planned_sizes(engine)
    assert planned.max_num_seqs is not None
    assert planned.max_num_batched_tokens is not None
    return EngineSizes(
        max_model_len=engine.max_model_len or facts.shape.context_length,
        max_num_seqs=planned.max_num_seqs,
        max_num_batched_tokens=planned.max_num_batched_tokens,
        max_cudagraph_capture_size=planned.max_cudagraph_capture_size or 0,
        kv_dtype_bytes=_kv_dtype_bytes(engine),
        activation_dtype_bytes=dtype_bytes(engine),
        block_size=_block_size(engine, facts),
        tensor_parallel_size=engine.tensor_parallel_size,
    )


def dtype_bytes(engine: EngineSettings) -> int:
    """Bytes per number of the engine's dtype."""
    return 4 if engine.dtype == "float32" else 2


def _kv_dtype_bytes(engine: EngineSettings) -> int:
    return dtype_bytes(engine) if (engine.kv_cache_dtype or "auto") == "auto" else 1


def _block_size(engine: EngineSettings, facts: CheckpointFacts) -> int:
    given = engine.engine_args.get("block_size")
    if given is None:
        return LATENT_BLOCK_SIZE if facts.shape.latent_dim else BLOCK_SIZE
    if not isinstance(given, int) or given < 1:
        raise ConfigError(f"engine_args.block_size is a number of tokens, have {given!r}")
    return given


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
    """The plan of one variant on one GPU type; measured bytes replace estimates.

    `wish` is as the file has it unless given. Raises PlanError, also for settings that vLLM would
    refuse or that take memory in ways that the plan does not know.
    """
    facts = facts_as_held(args.engine, facts)
    sizes = engine_sizes(args.engine, facts)
    _require_plannable(args, facts, sizes)
    measured = calibrations(args.checkpoint, gpu.name, sizes) if calibrations else None
    parts = footprint(facts, sizes, gpu, measured)
    return plan_memory(args.name, gpu, sizes, parts, wish or cache_wish(args))


def facts_as_held(engine: EngineSettings, facts: CheckpointFacts) -> CheckpointFacts:
    """The facts, with 16-bit weights where the settings ask to unpack SqueezeLLM's at load
    (`serve_app.engines.vllm_squeezellm`)."""
    additional = engine.engine_args.get("additional_config")
    settings = additional.get("squeezellm") if isinstance(additional, dict) else None
    unpacks = isinstance(settings, dict) and settings.get("dequantize_once") is True
    if not unpacks or facts.scheme.method is not QuantMethod.SQUEEZELLM:
        return facts
    scheme = QuantScheme(QuantMethod.UNQUANTIZED, bits=16)
    weights = weights_from_shape(facts.shape, scheme, dtype_bytes(engine))
    return dataclasses.replace(facts, scheme=scheme, weights=weights)


def _require_plannable(args: VariantArgs, facts: CheckpointFacts, sizes: EngineSizes) -> None:
    longest, heads = facts.shape.context_length, facts.shape.n_heads
    if sizes.max_model_len > longest > 0:
        raise PlanError(
            f"variant {args.name} has max_model_len {sizes.max_model_len:,}, and its model ends at "
            f"{longest:,}: lower it"
        )
    if heads % sizes.tensor_parallel_size:
        raise PlanError(
            f"variant {args.name} has tensor_parallel_size {sizes.tensor_parallel_size}, which "
            f"does not divide the model's {heads} attention heads: take a divisor"
        )
    for name in UNPLANNED_ARGS.keys() & args.engine.engine_args.keys():
        raise PlanError(
            f"variant {args.name} has engine_args.{name} ({UNPLANNED_ARGS[name]}), whose memory "
            "the plan does not know: remove it, or leave out `gpu` and set "
            "ray_actor_options.num_gpus: 1 by hand"
        )


def support_of(args: VariantArgs, facts: CheckpointFacts, gpu: GpuProfile) -> Support:
    """Whether the variant runs on this GPU type as its file has it."""
    engine = args.engine
    return check_support(facts.scheme, gpu, engine.dtype, engine.kv_cache_dtype, facts.shape)


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
    utilization = args.engine.gpu_memory_utilization or DEFAULT_UTILIZATION
    room = settings.fraction - plan.footprint.context.bytes / gpu.usable_bytes
    if utilization > room:
        raise PlanError(
            f"variant {args.name} has engine.gpu_memory_utilization {utilization} (vLLM's default "
            f"is {DEFAULT_UTILIZATION}), and its gpu.fraction {settings.fraction:.4f} leaves "
            f"{room:.4f} beside the CUDA context: vLLM's start-up check would ask for a "
            f"neighbour's memory; set it to {plan.gpu_memory_utilization:.4f} "
            "(`quantile plan FILE --write`)"
        )
    if args.engine.kv_cache_memory_bytes is None:
        raise PlanError(
            f"variant {args.name} has no engine.kv_cache_memory_bytes: vLLM would size its cache "
            f"by what neighbours leave free; set it to {plan.kv_cache_bytes} "
            "(`quantile plan FILE --write`)"
        )
