"""From what was read off a running engine to the parts of a plan, and when a value may be used."""

from dataclasses import dataclass

from serve_app.domain.errors import InvalidRunError
from serve_app.domain.units import format_bytes
from serve_app.planning.footprint import Calibration, EngineSizes


@dataclass(frozen=True)
class EngineMemory:
    """One rank of an engine after its warm-up and a full batch; bytes on its GPU.

    `process_bytes` is all that its process holds, as the driver counts; `torch_bytes` what torch's
    allocator took of it, `graph_pool_bytes` the part of that in the pools of CUDA graphs.
    """

    weights_bytes: int
    kv_cache_bytes: int
    torch_bytes: int
    graph_pool_bytes: int
    process_bytes: int


def measured_parts(memory: EngineMemory) -> Calibration:
    """The parts as the plan has them. With the KV cache they sum to the process's bytes.

    Activation is what torch holds beside weights, cache and graphs: the peak of a full batch, which
    its allocator keeps, and its fragmentation. Context is what is not torch's: CUDA's context and
    modules, cuBLAS, NCCL, and the driver's part of the graphs.

    Raises InvalidRunError where the numbers do not add up: another process came or went meanwhile.
    """
    rest = memory.torch_bytes - (
        memory.weights_bytes + memory.kv_cache_bytes + memory.graph_pool_bytes
    )
    context = memory.process_bytes - memory.torch_bytes
    if rest < 0 or context <= 0:
        raise InvalidRunError(
            f"the engine's memory does not add up: process {format_bytes(memory.process_bytes)}, "
            f"of it torch {format_bytes(memory.torch_bytes)}, of that weights "
            f"{format_bytes(memory.weights_bytes)}, cache {format_bytes(memory.kv_cache_bytes)}, "
            f"graphs {format_bytes(memory.graph_pool_bytes)}; measure on a GPU that nothing else "
            "uses"
        )
    return Calibration(
        weights_bytes=memory.weights_bytes,
        activation_bytes=rest,
        cuda_graphs_bytes=memory.graph_pool_bytes,
        context_bytes=context,
    )


def largest(ranks: list[Calibration]) -> Calibration:
    """The most that any rank of a tensor-parallel engine took, part by part."""

    def most(name: str) -> int | None:
        values = [value for rank in ranks if (value := getattr(rank, name)) is not None]
        return max(values, default=None)

    return Calibration(
        most("weights_bytes"),
        most("activation_bytes"),
        most("cuda_graphs_bytes"),
        most("context_bytes"),
    )


def usable_for(planned: EngineSizes, measured_at: EngineSizes, values: Calibration) -> Calibration:
    """What of `values` holds at the planned sizes; None for the rest.

    Weights depend on the ranks and the types alone. The others are upper bounds wherever they were
    measured at sizes no smaller than the planned ones. Graphs need graphs: eager execution has
    none, whatever a run with graphs measured, and so has its context.
    """
    same_kind = (
        planned.tensor_parallel_size == measured_at.tensor_parallel_size
        and planned.activation_dtype_bytes == measured_at.activation_dtype_bytes
    )
    if not same_kind:
        return Calibration()
    covers = (
        planned.kv_dtype_bytes == measured_at.kv_dtype_bytes
        and planned.max_num_seqs <= measured_at.max_num_seqs
        and planned.max_num_batched_tokens <= measured_at.max_num_batched_tokens
        and planned.max_model_len <= measured_at.max_model_len
    )
    eager = planned.max_cudagraph_capture_size == 0
    graphs_cover = (
        covers
        and eager == (measured_at.max_cudagraph_capture_size == 0)
        and planned.max_cudagraph_capture_size <= measured_at.max_cudagraph_capture_size
    )
    return Calibration(
        weights_bytes=values.weights_bytes,
        activation_bytes=values.activation_bytes if covers else None,
        cuda_graphs_bytes=values.cuda_graphs_bytes if graphs_cover else None,
        context_bytes=values.context_bytes if graphs_cover else None,
    )


def combine(usable: list[Calibration]) -> Calibration | None:
    """One value per part from several runs, None where no run has any.

    Weights: the most that was seen. The rest are upper bounds, of which the least is the closest.
    """

    def values(name: str) -> list[int]:
        return [value for each in usable if (value := getattr(each, name)) is not None]

    found = Calibration(
        weights_bytes=max(values("weights_bytes"), default=None),
        activation_bytes=min(values("activation_bytes"), default=None),
        cuda_graphs_bytes=min(values("cuda_graphs_bytes"), default=None),
        context_bytes=min(values("context_bytes"), default=None),
    )
    return None if found == Calibration() else found
