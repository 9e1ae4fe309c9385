"""The parts of a footprint and where each figure comes from."""

import dataclasses

from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.units import GIB, KIB, MIB
from serve_app.planning.facts import CheckpointFacts, Source
from serve_app.planning.footprint import (
    CONTEXT_BYTES,
    HOST_CONTEXT_BYTES,
    MIN_MARGIN_BYTES,
    NCCL_BYTES,
    Calibration,
    EngineSizes,
    footprint,
    host_footprint,
)
from serve_app.planning.weights import allocated_bytes, weights_from_shape
from tests.unit.test_planning_shape import shape

L4 = GpuProfile("L4", "L4", 23034 * MIB, 500 * MIB, (8, 9), 300.0)
H100 = GpuProfile("H100", "H100", 81559 * MIB, 500 * MIB, (9, 0), 3350.0)
SIZES = EngineSizes(8192, 64, 2048, 64)
AWQ = QuantScheme(QuantMethod.AWQ, 4, group_size=128, symmetric=False, container="awq")


def facts(name: str, scheme: QuantScheme) -> CheckpointFacts:
    return CheckpointFacts(name, shape(name), scheme, weights_from_shape(shape(name), scheme))


def test_parts_of_a_4_bit_engine_on_a_small_gpu():
    found = footprint(facts("qwen2.5-7b", AWQ), SIZES, L4)
    assert found.weights.source is Source.CONFIG
    # "Model loading took 5.39 GiB", vLLM 0.28 with Marlin
    assert 5.39 * GIB <= found.weights.bytes <= 5.5 * GIB
    assert found.activation.source is found.cuda_graphs.source is Source.ESTIMATED
    assert found.context.bytes == CONTEXT_BYTES
    assert found.margin.bytes == MIN_MARGIN_BYTES > 0.02 * L4.usable_bytes
    assert found.kv_bytes_per_token == 56 * KIB
    assert found.kv_bytes_per_request == 8192 * 56 * KIB
    assert found.fixed_bytes == sum(
        part.bytes
        for part in (
            found.weights,
            found.activation,
            found.cuda_graphs,
            found.context,
            found.margin,
        )
    )


def test_the_margin_grows_with_the_gpu_and_hopper_unpacks_zero_points():
    small, large = (footprint(facts("qwen2.5-7b", AWQ), SIZES, gpu) for gpu in (L4, H100))
    assert large.margin.bytes == int(H100.usable_bytes * 0.02)
    assert large.weights.bytes > small.weights.bytes


def test_measured_parts_take_the_place_of_estimates():
    measured = Calibration(activation_bytes=123, context_bytes=0)
    found = footprint(facts("qwen2.5-7b", AWQ), SIZES, L4, measured)
    assert (found.activation.bytes, found.activation.source) == (123, Source.MEASURED)
    assert (found.context.bytes, found.context.source) == (0, Source.MEASURED)
    assert found.weights.source is Source.CONFIG


def test_two_ranks():
    known = facts("llama-3.1-70b", AWQ)
    one = footprint(known, SIZES, H100)
    two = footprint(known, dataclasses.replace(SIZES, tensor_parallel_size=2), H100)
    assert two.weights.bytes < 0.51 * one.weights.bytes
    assert two.kv_bytes_per_token * 2 == one.kv_bytes_per_token
    assert two.context.bytes == CONTEXT_BYTES + NCCL_BYTES


def test_fp8_cache_and_eager_execution():
    sizes = dataclasses.replace(SIZES, kv_dtype_bytes=1, max_cudagraph_capture_size=0)
    found = footprint(facts("qwen2.5-7b", AWQ), sizes, L4)
    assert found.kv_bytes_per_token == 28 * KIB
    assert found.cuda_graphs.bytes == 0


def test_a_cpu_engine_holds_embedding_and_head_twice():
    known = facts("qwen2.5-0.5b", QuantScheme(QuantMethod.UNQUANTIZED, 16))
    found = host_footprint(known, SIZES)
    assert found.weights.bytes == known.weights.total_bytes + known.weights.embedding_bytes
    assert found.context.bytes == HOST_CONTEXT_BYTES
    assert (found.cuda_graphs.bytes, found.margin.bytes) == (0, 0)
    assert found.kv_bytes_per_token == 12 * KIB


def test_allocator_overhead_is_larger_for_repacked_weights():
    assert allocated_bytes(1000, AWQ) == 1040
    assert allocated_bytes(1000, QuantScheme(QuantMethod.UNQUANTIZED, 16)) == 1015
