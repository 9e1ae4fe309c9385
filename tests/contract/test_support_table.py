"""The table of GPUs and schemes against the classes of the vLLM that is installed."""

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its own limits are what is compared")

import torch

from serve_app.node.host import has_amx
from serve_app.quantize.dimensions import CPU_STEP, MARLIN_INPUTS, MARLIN_OUTPUTS
from serve_app.quantize.support_gpu import FLASHINFER_HEAD_DIMS, FP8_CACHE
from serve_app.quantize.support_rules import (
    AMPERE,
    RULES,
    TURING,
)


def floor_of(path: str) -> tuple[int, int]:
    module, name = path.rsplit(".", 1)
    return divmod(getattr(importlib.import_module(module), name).get_min_capability(), 10)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.declared_by], ids=lambda r: r.name)
def test_floors_are_vllms(rule):
    assert floor_of(rule.declared_by) == rule.floor
    if rule.native_floor and rule.native_declared_by:
        assert floor_of(rule.native_declared_by) == rule.native_floor


def test_configurations_ask_for_no_more_than_the_rules():
    """A checkpoint's container has a floor of its own, checked before any layer's."""
    from vllm.model_executor.layers.quantization import get_quantization_config

    for container in ("compressed-tensors", "gptq", "awq", "fp8"):
        assert divmod(get_quantization_config(container).get_min_capability(), 10) <= TURING


def test_what_no_container_of_vllm_takes():
    """Of its own: plugins, ours among them, add to the list of the process that loads them."""
    from vllm.model_executor.layers.quantization import QuantizationMethods

    known = set(get_args(QuantizationMethods))
    assert {"compressed-tensors", "gptq", "awq", "fp8"} <= known
    assert not {"gguf", "squeezellm"} & known


def test_gptq_takes_what_the_rules_say():
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig

    assert set(AutoGPTQConfig.TYPE_MAP) == {(4, True), (8, True)}


def test_zero_points_of_8_bits_are_machetes_alone():
    from vllm.model_executor.layers.quantization.utils.machete_utils import (
        query_machete_supported_quant_types,
    )
    from vllm.scalar_type import scalar_types

    assert scalar_types.uint8 in query_machete_supported_quant_types(zero_points=True)


def test_fp8_caches_of_the_attention_backends():
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
    from vllm.v1.attention.backends.mla.triton_mla import TritonMLABackend
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    assert set(TritonAttentionBackend.supported_kv_cache_dtypes) >= FP8_CACHE
    assert "fp8_e5m2" not in TritonMLABackend.supported_kv_cache_dtypes
    assert FlashAttentionBackend.supports_compute_capability(DeviceCapability(*AMPERE))
    assert not FlashAttentionBackend.supports_compute_capability(DeviceCapability(*TURING))


def test_which_attention_runs_on_ampere_with_an_fp8_cache():
    """From the source: FlashInfer itself comes with vLLM's GPU build only."""
    spec = importlib.util.find_spec("vllm.v1.attention.backends.flashinfer")
    tree = ast.parse(Path(spec.origin).read_text())
    (backend,) = (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "FlashInferBackend"
    )
    caches = next(
        node.value
        for node in backend.body
        if isinstance(node, ast.AnnAssign) and node.target.id == "supported_kv_cache_dtypes"
    )
    heads = next(
        node.body[-1].value
        for node in backend.body
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
    )
    assert set(ast.literal_eval(caches)) >= FP8_CACHE
    assert set(ast.literal_eval(heads)) == FLASHINFER_HEAD_DIMS


def test_kernels_for_four_bits_on_cpus():
    """What `support_cpu` says of other widths, and `dimensions` of sizes."""
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
        MPLinearLayerConfig,
    )
    from vllm.scalar_type import scalar_types

    def takes(kind, inputs=128, outputs=64):
        shape = (inputs, outputs)
        config = MPLinearLayerConfig(shape, shape, kind, torch.float16, 32, False, False)
        return CPUWNA16LinearKernel.can_implement(config)[0]

    assert takes(scalar_types.uint4)
    assert takes(scalar_types.uint4b8)
    for kind in (scalar_types.uint2b2, scalar_types.uint3b4, scalar_types.uint8b128):
        assert not takes(kind)
    assert takes(scalar_types.uint4b8, CPU_STEP, CPU_STEP)
    assert not takes(scalar_types.uint4b8, inputs=128 + CPU_STEP // 2)
    assert not takes(scalar_types.uint4b8, outputs=64 + CPU_STEP // 2)


def test_fp8_in_blocks_needs_amx():
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel

    assert CPUFp8BlockScaledMMKernel.is_supported()[0] is has_amx()


def test_static_symmetric_scales_are_ignored_where_vllm_takes_its_amx_kernel():
    from vllm.model_executor.layers.utils import check_cpu_sgl_kernel

    assert check_cpu_sgl_kernel(256, 256, torch.int8) is has_amx()


def test_marlin_takes_the_steps_that_the_preflight_names():
    from vllm.model_executor.layers.quantization.utils import marlin_utils

    assert marlin_utils.GPTQ_MARLIN_MIN_THREAD_K == MARLIN_INPUTS
    assert marlin_utils.GPTQ_MARLIN_MIN_THREAD_N == MARLIN_OUTPUTS


def test_group_order_is_refused_by_vllm_itself():
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig

    declared = {"bits": 4, "group_size": 128, "desc_act": True, "sym": True}
    with pytest.raises(ValueError, match="no longer supported"):
        AutoGPTQConfig.from_config(declared)
