"""Weight bytes against published figures, and from tensor headers."""

import dataclasses

import pytest

from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.domain.tensors import TensorInfo
from serve_app.domain.units import GIB
from serve_app.planning.facts import Source, WeightBytes
from serve_app.planning.weights import (
    allocated_bytes,
    rank_bytes,
    unpacked_zero_points_bytes,
    weights_from_shape,
    weights_from_tensors,
)
from tests.unit.test_planning_shape import shape

PLAIN = QuantScheme(QuantMethod.UNQUANTIZED, 16)
INT8 = QuantScheme(QuantMethod.INT8_W8A8, 8, activation_bits=8, container="compressed-tensors")
FP8 = QuantScheme(QuantMethod.FP8, 8, activation_bits=8, container="compressed-tensors")
GPTQ = QuantScheme(QuantMethod.GPTQ, 4, group_size=128, container="gptq")
AWQ = QuantScheme(QuantMethod.AWQ, 4, group_size=128, symmetric=False, container="awq")
GGUF = QuantScheme(QuantMethod.GGUF, 4, container="gguf")

HUB = "https://huggingface.co"
VLLM = "https://github.com/vllm-project/vllm"

CHECKPOINTS = {
    # `total_size` of model.safetensors.index.json. Where a copy of the index is in public
    # repositories, the figure was compared with it; else with the parameters that the card states.
    "llama-3.1-8b": (16_060_522_496, f"{HUB}/meta-llama/Llama-3.1-8B"),
    "llama-3.1-70b": (141_107_412_992, f"{HUB}/meta-llama/Llama-3.1-70B"),
    "qwen2.5-7b": (15_231_233_024, f"{HUB}/Qwen/Qwen2.5-7B-Instruct"),
    "qwen2.5-32b": (65_527_752_704, f"{HUB}/Qwen/Qwen2.5-32B-Instruct"),
    "qwen3-8b": (16_381_470_720, f"{HUB}/Qwen/Qwen3-8B"),
    "mistral-7b-v0.3": (14_496_047_104, f"{HUB}/mistralai/Mistral-7B-v0.3"),
    "mixtral-8x7b": (93_405_585_408, f"{HUB}/mistralai/Mixtral-8x7B-v0.1"),
    "phi-3-mini-4k": (7_642_159_104, f"{HUB}/microsoft/Phi-3-mini-4k-instruct (3.82B)"),
    "gemma-2-9b": (18_483_411_968, f"{HUB}/google/gemma-2-9b (9.24B)"),
    "tinyllama-1.1b": (2_200_119_864, f"{HUB}/TinyLlama/TinyLlama-1.1B-Chat-v1.0 (file)"),
    "llama-3.2-1b": (2_471_645_608, f"{HUB}/meta-llama/Llama-3.2-1B (file)"),
    "qwen3-30b-a3b": (61_064_245_248, f"{HUB}/Qwen/Qwen3-30B-A3B (30.5B)"),
    "deepseek-v2-lite": (31_412_968_448, f"{HUB}/deepseek-ai/DeepSeek-V2-Lite (15.7B)"),
}
"""Bytes of the unquantized checkpoint, and where they are published."""

LOADED = [
    # What vLLM's log says after loading, in GiB.
    ("llama-3.1-8b", PLAIN, 14.9889, f"{VLLM}/pull/17122"),
    ("llama-2-7b", PLAIN, 12.55, "kubernetes-sigs/gateway-api-inference-extension/pull/550"),
    ("gemma-2-9b", PLAIN, 17.3781, f"{VLLM}: bug report of 0.5.2 with gemma-2-9b, 2024-07-17"),
    ("deepseek-v2-lite", PLAIN, 29.3010, f"{VLLM}/pull/4650"),
    ("llama-3.1-70b", INT8, 67.7229, f"{VLLM}/pull/12569 (quantized.w8a8)"),
    ("llama-3.1-8b", FP8, 8.4939, "guidellm notes, neuralmagic/...-8B-Instruct-FP8-dynamic"),
    ("llama-3.1-8b", FP8, 8.4927, "MMLU run on A40, Marlin weight-only FP8"),
]

FILES = [
    # Sizes of quantized checkpoints, in 10^9 bytes.
    ("llama-3.1-8b", AWQ, 5.74, f"{HUB}/hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"),
    ("llama-3.1-8b", GPTQ, 5.74, f"{HUB}/hugging-quants/Meta-Llama-3.1-8B-Instruct-GPTQ-INT4"),
    ("llama-3.1-8b", FP8, 9.08, f"{HUB}/neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8"),
    ("llama-3.1-8b", INT8, 9.1, f"{HUB}/neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8"),
    ("llama-2-7b", GPTQ, 3.9, f"{HUB}/TheBloke/Llama-2-7B-GPTQ"),
    ("qwen2.5-7b", AWQ, 5.57, f"{HUB}/Qwen/Qwen2.5-7B-Instruct-AWQ"),
    ("llama-3.1-8b", GGUF, 4.92, f"{HUB}/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF Q4_K_M"),
    ("qwen3-32b", AWQ, 18.00 * 1.073741824, "measured 18.00 GiB on disk, Qwen/Qwen3-32B-AWQ"),
    ("qwen3-14b", AWQ, 9.29 * 1.073741824, "measured 9.29 GiB on disk, Qwen/Qwen3-14B-AWQ"),
]


@pytest.mark.parametrize(("name", "published"), [(n, b) for n, (b, _) in CHECKPOINTS.items()])
def test_unquantized_checkpoints(name, published):
    found = weights_from_shape(shape(name), PLAIN)
    assert found.source is Source.CONFIG
    assert found.total_bytes == pytest.approx(published, rel=0.02)
    exact = dataclasses.replace(shape(name), context_length=0)  # the rotary table is not in files
    assert weights_from_shape(exact, PLAIN).total_bytes == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(("name", "scheme", "published_gib", "source"), LOADED)
def test_loaded_models(name, scheme, published_gib, source):
    found = weights_from_shape(shape(name), scheme).total_bytes / GIB
    assert found == pytest.approx(published_gib, rel=0.02), source


@pytest.mark.parametrize(("name", "scheme", "published_gb", "source"), FILES)
def test_quantized_checkpoints(name, scheme, published_gb, source):
    found = weights_from_shape(shape(name), scheme).total_bytes / 1e9
    assert found == pytest.approx(published_gb, rel=0.02), source


@pytest.mark.parametrize(
    ("name", "scheme", "published_gib"),
    [
        # "Model loading took": vLLM 0.31 with Machete, 0.28 with Marlin, 0.24, 0.31
        ("qwen2.5-7b", AWQ, 5.38),
        ("qwen2.5-7b", AWQ, 5.39),
        ("qwen2.5-7b", PLAIN, 14.37),
        ("llama-3.1-8b", PLAIN, 15.0),
    ],
)
def test_the_allocator_takes_no_more_than_planned(name, scheme, published_gib):
    resident = weights_from_shape(shape(name), scheme).total_bytes
    planned = allocated_bytes(resident, scheme) / GIB
    assert published_gib <= planned <= 1.02 * published_gib


def parts(weights: WeightBytes) -> dict[str, int]:
    return {
        "linear": weights.linear_bytes,
        "scale": weights.scale_bytes,
        "embedding": weights.embedding_bytes,
        "head": weights.head_bytes,
        "other": weights.other_bytes,
    }


def tensor(dtype: str, *dims: int) -> TensorInfo:
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1}
    n_bytes = sizes[dtype]
    for dim in dims:
        n_bytes *= dim
    return TensorInfo(dtype, dims, n_bytes)


SMALL = dataclasses.replace(
    shape("llama-3.1-8b"), vocab_size=100, hidden_size=64, context_length=0, n_layers=1
)
UP = "model.layers.0.mlp.up_proj"


def test_vocabulary_is_padded_and_the_engine_decides_the_dtype():
    tensors = {
        "model.embed_tokens.weight": tensor("F32", 100, 64),
        "lm_head.weight": tensor("F32", 100, 64),
        f"{UP}.weight": tensor("F32", 256, 64),
        "model.norm.weight": tensor("F32", 64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": tensor("F32", 32),
    }
    found = weights_from_tensors(SMALL, PLAIN, tensors)
    assert found.source is Source.HEADERS
    assert parts(found) == {
        "linear": 256 * 64 * 2,
        "scale": 0,
        "embedding": 128 * 64 * 2,
        "head": 128 * 64 * 2,
        "other": 64 * 2,
    }
    assert weights_from_tensors(SMALL, PLAIN, tensors, 4).linear_bytes == 256 * 64 * 4


def test_a_tied_head_is_not_loaded():
    tied = dataclasses.replace(SMALL, tied_embeddings=True)
    tensors = {
        "model.embed_tokens.weight": tensor("BF16", 100, 64),
        "lm_head.weight": tensor("BF16", 100, 64),
    }
    assert weights_from_tensors(tied, PLAIN, tensors).head_bytes == 0


def test_layers_beyond_the_configured_number_are_not_loaded():
    tensors = {
        f"{prefix}layers.{layer}.mlp.up_proj.weight": tensor("BF16", 256, 64)
        for prefix in ("model.", "language_model.model.", "vision_tower.encoder.")
        for layer in (0, 1)
    }
    found = weights_from_tensors(SMALL, PLAIN, tensors)  # a model of one layer
    assert found.linear_bytes == (1 + 1 + 2) * 256 * 64 * 2


def test_scales_by_scheme():
    int8 = {f"{UP}.weight": tensor("I8", 256, 64), f"{UP}.weight_scale": tensor("BF16", 256, 1)}
    found = weights_from_tensors(SMALL, INT8, int8)
    assert (found.linear_bytes, found.scale_bytes) == (256 * 64, 256 * 4)  # float32 in the engine
    gptq = {
        f"{UP}.qweight": tensor("I32", 8, 256),
        f"{UP}.qzeros": tensor("I32", 1, 32),
        f"{UP}.scales": tensor("F16", 1, 256),
        f"{UP}.g_idx": tensor("I32", 64),
    }
    found = weights_from_tensors(SMALL, GPTQ, gptq)
    assert (found.linear_bytes, found.scale_bytes) == (8 * 256 * 4, 32 * 4 + 256 * 2)
    packed = {
        f"{UP}.weight_packed": tensor("I32", 256, 8),
        f"{UP}.weight_scale": tensor("F32", 256, 1),
        f"{UP}.weight_shape": tensor("I64", 2),
    }
    found = weights_from_tensors(SMALL, GPTQ, packed)
    assert (found.linear_bytes, found.scale_bytes) == (256 * 8 * 4, 256 * 2)


def test_routers_and_biases_are_other():
    tensors = {
        "model.layers.0.mlp.gate.weight": tensor("BF16", 8, 64),
        "model.layers.0.mlp.gate.e_score_correction_bias": tensor("F32", 8),
        "model.layers.0.mlp.gate_proj.weight": tensor("BF16", 256, 64),
        "model.layers.0.self_attn.q_proj.bias": tensor("BF16", 64),
    }
    found = weights_from_tensors(SMALL, PLAIN, tensors)
    assert found.linear_bytes == 256 * 64 * 2
    assert found.other_bytes == 8 * 64 * 2 + 8 * 4 + 64 * 2


def test_gguf_tensors_count_as_they_are():
    tensors = {
        "token_embd.weight": TensorInfo("Q4_K", (128, 64), 4608),
        "blk.0.ffn_up.weight": TensorInfo("Q6_K", (256, 64), 13440),
        "output_norm.weight": TensorInfo("F32", (64,), 256),
        "output.weight": TensorInfo("Q6_K", (128, 64), 6720),
    }
    found = weights_from_tensors(dataclasses.replace(SMALL, vocab_size=128), GGUF, tensors)
    assert parts(found) == {
        "linear": 13440,
        "scale": 0,
        "embedding": 4608,
        "head": 6720,
        "other": 256,
    }


def test_latent_attention_keeps_a_copy_beside_quantized_weights():
    deepseek = shape("deepseek-v2-lite")
    copies = 512 * 16 * (128 + 128) * 27 * 2
    expected = weights_from_shape(deepseek, PLAIN).linear_bytes // 2 + copies
    assert weights_from_shape(deepseek, FP8).linear_bytes == expected


def test_tensor_parallel_ranks():
    llama = shape("llama-3.1-8b")
    weights = weights_from_shape(llama, PLAIN)
    assert rank_bytes(llama, weights, 1) == weights.total_bytes
    # https://github.com/vllm-project/vllm/pull/10511: Meta-Llama-3-8B with two ranks
    short = dataclasses.replace(llama, context_length=8192)
    found = rank_bytes(short, weights_from_shape(short, PLAIN), 2) / GIB
    assert found == pytest.approx(7.48, rel=0.01)
    divided = weights.total_bytes - weights.other_bytes
    assert rank_bytes(llama, weights, 8) == weights.other_bytes + divided // 8
    copied_heads = 2 * 128 * 4096 * 32 * 2 // 2  # 16 ranks, 8 heads: half of a head too many each
    assert rank_bytes(llama, weights, 16) == weights.other_bytes + divided // 16 + copied_heads


def test_machete_unpacks_zero_points():
    qwen = shape("qwen2.5-7b")
    groups = 6_525_288_448 // 128
    assert unpacked_zero_points_bytes(qwen, AWQ, 2) == groups * 2 - groups // 2
    assert unpacked_zero_points_bytes(qwen, GPTQ, 2) == 0
    assert unpacked_zero_points_bytes(qwen, INT8, 2) == 0
