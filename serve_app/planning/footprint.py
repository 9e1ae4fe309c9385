"""What one engine takes on its GPU, part by part, before it starts."""

from collections.abc import Callable
from dataclasses import dataclass

from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import GIB, MIB
from serve_app.planning.activation import activation_bytes, graph_bytes
from serve_app.planning.facts import CheckpointFacts, Source
from serve_app.planning.kv import CacheLayout, kv_bytes_per_request, kv_bytes_per_token
from serve_app.planning.weights import (
    MACHETE_CAPABILITY,
    allocated_bytes,
    lookup_bytes,
    rank_bytes,
    unpacked_zero_points_bytes,
)

CONTEXT_BYTES = 768 * MIB
"""CUDA context, modules and cuBLAS workspaces of one engine process. By vLLM's logs 0.41 GiB
(A100) to 0.53 GiB (H100) before it counts, and 0.07 to 0.26 GiB "non-torch" after."""
NCCL_BYTES = GIB
"""Communication buffers of one rank under tensor parallelism: 0.2 GiB (no NVLink) to 0.95 GiB
(B200, four ranks) by the same logs."""
MARGIN_SHARE = 0.02
MIN_MARGIN_BYTES = 512 * MIB
"""What is kept free: the larger of the share and these bytes. vLLM itself keeps 150 MiB
(`v1/worker/gpu_worker.py`); the rest is for the growth of allocators and for compiled kernels."""
HOST_CONTEXT_BYTES = 3 * GIB // 2
"""What a CPU engine's two processes, server and engine core, take beside weights and KV cache:
1.1 to 1.3 GiB measured (sum of PSS, ready and after eight answers of 256 tokens) of `python -m
vllm.entrypoints.openai.api_server` with the settings of configs/local.yaml; the rest for Ray's part
of the server's process."""


@dataclass(frozen=True)
class EngineSizes:
    """The engine settings that memory follows from.

    `max_cudagraph_capture_size` of 0 stands for eager execution.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_cudagraph_capture_size: int
    kv_dtype_bytes: int = 2
    activation_dtype_bytes: int = 2
    block_size: int = 16
    tensor_parallel_size: int = 1


@dataclass(frozen=True)
class Part:
    """Bytes, and how they are known."""

    bytes: int
    source: Source


@dataclass(frozen=True)
class Footprint:
    """Bytes per GPU of one engine: fixed parts, and what each token and request adds.

    `kv_bytes_per_request` is one request of `max_model_len` tokens in whole blocks.
    """

    weights: Part
    activation: Part
    cuda_graphs: Part
    context: Part
    margin: Part
    kv_bytes_per_token: int
    kv_bytes_per_request: int

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        parts = (self.weights, self.activation, self.cuda_graphs, self.context, self.margin)
        return sum(part.bytes for part in parts)


@dataclass(frozen=True)
class Calibration:
    """Bytes per GPU measured for a variant, GPU type and vLLM version; None where not measured."""

    weights_bytes: int | None = None
    activation_bytes: int | None = None
    cuda_graphs_bytes: int | None = None
    context_bytes: int | None = None


Calibrations = Callable[[str, str, EngineSizes], Calibration | None]
"""From a checkpoint's uri, a GPU type and the sizes to what was measured there."""


def footprint(
    facts: CheckpointFacts,
    sizes: EngineSizes,
    gpu: GpuProfile,
    calibration: Calibration | None = None,
) -> Footprint:
    """The footprint of an engine on this GPU type; measured values replace estimates."""
    measured = calibration or Calibration()
    ranks, dtype_bytes = sizes.tensor_parallel_size, sizes.activation_dtype_bytes
    weights = rank_bytes(facts.shape, facts.weights, ranks)
    if gpu.compute_capability == MACHETE_CAPABILITY:
        weights += unpacked_zero_points_bytes(facts.shape, facts.scheme, dtype_bytes) // ranks
    weights = allocated_bytes(weights, facts.scheme)
    activation = activation_bytes(
        facts.shape, sizes.max_num_batched_tokens, sizes.max_num_seqs, dtype_bytes, ranks
    )
    activation += lookup_bytes(facts.scheme)
    graphs = graph_bytes(
        facts.shape,
        sizes.max_cudagraph_capture_size,
        sizes.max_num_batched_tokens,
        sizes.max_num_seqs,
    )
    context = CONTEXT_BYTES + (NCCL_BYTES if ranks > 1 else 0)
    margin = max(int(gpu.usable_bytes * MARGIN_SHARE), MIN_MARGIN_BYTES)
    return Footprint(
        weights=_part(weights, facts.weights.source, measured.weights_bytes),
        activation=_part(activation, Source.ESTIMATED, measured.activation_bytes),
        cuda_graphs=_part(graphs, Source.ESTIMATED, measured.cuda_graphs_bytes),
        context=_part(context, Source.ESTIMATED, measured.context_bytes),
        margin=Part(margin, Source.ESTIMATED),
        kv_bytes_per_token=kv_bytes_per_token(facts.shape, sizes.kv_dtype_bytes, ranks),
        kv_bytes_per_request=kv_bytes_per_request(facts.shape, _layout(sizes)),
    )


def host_footprint(facts: CheckpointFacts, sizes: EngineSizes) -> Footprint:
    """The footprint of a CPU engine in the machine's memory, all its processes together.

    vLLM's CPU build may hold embedding and head twice: as they are for looking up, and packed for
    oneDNN (`model_executor/layers/utils.py`, `dispatch_cpu_unquantized_gemm`).
    """
    weights = facts.weights
    resident = weights.total_bytes + weights.embedding_bytes + weights.head_bytes
    activation = activation_bytes(
        facts.shape,
        sizes.max_num_batched_tokens,
        sizes.max_num_seqs,
        sizes.activation_dtype_bytes,
    )
    return Footprint(
        weights=Part(resident, weights.source),
        activation=Part(activation, Source.ESTIMATED),
        cuda_graphs=Part(0, Source.ESTIMATED),
        context=Part(HOST_CONTEXT_BYTES, Source.ESTIMATED),
        margin=Part(0, Source.ESTIMATED),
        kv_bytes_per_token=kv_bytes_per_token(facts.shape, sizes.kv_dtype_bytes),
        kv_bytes_per_request=kv_bytes_per_request(facts.shape, _layout(sizes)),
    )


def _part(n_bytes: int, source: Source, measured: int | None) -> Part:
    return Part(n_bytes, source) if measured is None else Part(measured, Source.MEASURED)


def _layout(sizes: EngineSizes) -> CacheLayout:
    return CacheLayout(
        max_model_len=sizes.max_model_len,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        dtype_bytes=sizes.kv_dtype_bytes,
        block_size=sizes.block_size,
        tensor_parallel_size=sizes.tensor_parallel_size,
    )
