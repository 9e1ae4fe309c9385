"""The start of a variant's engine in its replica: its need, its turn, its watch."""

import logging
import math
from dataclasses import replace

from serve_app.config.calibration import calibrations
from serve_app.config.gpus import find_gpu, load_gpus, recognise_gpu
from serve_app.config.schema import VariantArgs
from serve_app.config.sizing import (
    DEFAULT_UTILIZATION,
    dtype_bytes,
    engine_sizes,
    facts_as_held,
    require_share,
    support_of,
    variant_plan,
    with_planned_sizes,
)
from serve_app.domain.errors import CheckpointError, PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import BP_TOTAL, format_bytes
from serve_app.engines.engine import (
    Engine,
    EngineSpec,
    engines_run_on_cpu,
    prepare_engine,
    start_engine,
)
from serve_app.node.devices import DeviceMemory
from serve_app.node.gate import StartGate, StartNeed
from serve_app.node.host import HostMemory
from serve_app.node.nvml import assigned_gpus
from serve_app.node.registry import announce_owner
from serve_app.node.runtime import runtime_dir
from serve_app.node.watch import MemoryMetrics, MemoryWatch
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.footprint import host_footprint
from serve_app.planning.llamacpp import llamacpp_bytes
from serve_app.serving.placement import assigned_fraction
from serve_app.store.facts import checkpoint_facts

logger = logging.getLogger("ray.serve")


def require_planned_share(args: VariantArgs) -> None:
    """Refuse a share of the planned GPU type that does not cover the plan, before a replica starts.

    Reads the checkpoint's headers. One that cannot be read from this node is left to the replica,
    which checks again on the card that it gets. Raises PlanError.
    """
    if args.gpu is None or args.engine.kind == "fake":
        return
    gpu = find_gpu(load_gpus(), args.gpu.type)
    try:
        facts = checkpoint_facts(args.checkpoint, dtype_bytes(args.engine))
    except CheckpointError as error:
        logger.warning("%s: its share is checked in the replica, not here: %s", args.name, error)
        return
    support = support_of(args, facts, gpu)
    if not support.runs:
        raise PlanError(f"variant {args.name}: {support.reason}: {support.fix}")
    require_share(args, variant_plan(args, facts, gpu, calibrations()))


async def start_in_turn(
    args: VariantArgs, spec: EngineSpec, facts: CheckpointFacts, metrics: MemoryMetrics
) -> tuple[Engine, MemoryWatch]:
    """Start an engine when it is its turn on its devices and its memory is free.

    Raises PlanError if Ray has set aside less than the engine needs, EngineError if turn or memory
    do not come in time or the engine does not start, ConfigError for settings that it refuses.
    """
    prepare_engine(spec)
    if spec.settings.kind == "vllm":
        spec = replace(spec, settings=with_planned_sizes(spec.settings))
    devices, need = _devices_and_need(args, facts)
    directory = runtime_dir()
    announce_owner(args.name, tuple(device.key for device in devices), need.need_bytes, directory)
    async with StartGate(directory).turn(need, devices) as free_before:
        engine = await start_engine(spec)
        taken = {device.key: free_before[device.key] - device.free_bytes() for device in devices}
    return engine, MemoryWatch(need, devices, metrics, taken)


def _devices_and_need(
    args: VariantArgs, facts: CheckpointFacts
) -> tuple[list[DeviceMemory], StartNeed]:
    if args.engine.kind == "llamacpp":
        engine = args.engine
        need_bytes = llamacpp_bytes(facts, engine.max_model_len, engine.max_num_seqs)
        return [HostMemory()], StartNeed(args.name, need_bytes, "")
    if engines_run_on_cpu():
        host = HostMemory()
        host_bytes = host_need_bytes(args, facts, host.total_bytes())
        return [host], StartNeed(args.name, host_bytes, _why_so_much(args))
    gpus = assigned_gpus(args.engine.tensor_parallel_size)
    cards = load_gpus()
    found = gpus[0].profile()
    card = recognise_gpu(cards, found.name, found.total_bytes) or found
    need_bytes = gpu_need_bytes(args, facts, card)
    if need_bytes > found.usable_bytes:
        raise PlanError(
            f"variant {args.name} needs {format_bytes(need_bytes)}, and of this {card.name} the "
            f"driver leaves {format_bytes(found.usable_bytes)}: lower concurrency, max_num_seqs or "
            "max_model_len, and correct reserved_mib in configs/gpus.yaml for this driver"
        )
    require_assigned(args, card, need_bytes, assigned_fraction())
    return list(gpus), StartNeed(args.name, need_bytes, _why_so_much(args))


def _why_so_much(args: VariantArgs) -> str:
    if args.engine.kv_cache_memory_bytes is not None:
        return ""
    utilization = args.engine.gpu_memory_utilization or DEFAULT_UTILIZATION
    return f" (without engine.kv_cache_memory_bytes vLLM takes {utilization:.0%} of a device)"


def host_need_bytes(args: VariantArgs, facts: CheckpointFacts, total_bytes: int) -> int:
    """Memory of the machine that a CPU engine takes, all its processes together."""
    cache = args.engine.kv_cache_memory_bytes
    if cache is None:  # vLLM fills up its share of the machine
        return _share_of(total_bytes, args)
    held = facts_as_held(args.engine, facts)
    return host_footprint(held, engine_sizes(args.engine, facts)).fixed_bytes + cache


def gpu_need_bytes(args: VariantArgs, facts: CheckpointFacts, card: GpuProfile) -> int:
    """Bytes of each GPU that the engine takes as its file says, on the card that it really has.

    Raises PlanError if its cache cannot hold one request.
    """
    plan = variant_plan(args, facts, card, calibrations())
    if args.engine.kv_cache_memory_bytes is None:  # the context comes on top of vLLM's share
        return _share_of(card.usable_bytes, args) + plan.footprint.context.bytes
    return plan.need_bytes


def _share_of(total_bytes: int, args: VariantArgs) -> int:
    return math.ceil(total_bytes * (args.engine.gpu_memory_utilization or DEFAULT_UTILIZATION))


def require_assigned(args: VariantArgs, card: GpuProfile, need_bytes: int, fraction: float) -> None:
    """Raise PlanError unless what Ray has set aside on this card covers the need."""
    needed_bp = -(-need_bytes * BP_TOTAL // card.usable_bytes)
    if round(fraction * BP_TOTAL) >= needed_bp:
        return
    have = format_bytes(int(fraction * card.usable_bytes))
    raise PlanError(
        f"variant {args.name} needs {format_bytes(need_bytes)}, {needed_bp / BP_TOTAL:.4f} of this "
        f"{card.name}, and Ray has set aside {fraction:.4f} ({have}): "
        + (
            f"its args.gpu says {args.gpu.fraction} of a {args.gpu.type}; `quantile plan FILE "
            "--write` computes it anew"
            if args.gpu
            else "raise ray_actor_options.num_gpus, or let `quantile plan` compute args.gpu"
        )
    )
