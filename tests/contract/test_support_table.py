"""The table of GPUs and schemes against the classes of the vLLM that is installed."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its own limits are what is compared")

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
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    known = set(QUANTIZATION_METHODS)
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
