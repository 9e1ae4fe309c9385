import dataclasses

import pytest

from serve_app.config.gpus import load_gpus
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.planning.shape import ModelShape
from serve_app.planning.support import RULES, check_support
from serve_app.quantize.recipes import RECIPES

GPUS = load_gpus()
CT = "compressed-tensors"
BF16 = QuantScheme(QuantMethod.UNQUANTIZED, 16)
INT8 = QuantScheme(QuantMethod.INT8_W8A8, 8, 8, container=CT)
FP8 = QuantScheme(QuantMethod.FP8, 8, 8, container=CT)
FP8_W8A16 = QuantScheme(QuantMethod.FP8, 8, 16, container=CT)
GPTQ = QuantScheme(QuantMethod.GPTQ, 4, group_size=128, container="gptq")
GPTQ_CT = QuantScheme(QuantMethod.GPTQ, 4, group_size=128, container=CT)
AWQ = QuantScheme(QuantMethod.AWQ, 4, group_size=128, symmetric=False, container="awq")
AWQ_CT = dataclasses.replace(AWQ, container=CT)
W4A8 = QuantScheme(QuantMethod.GPTQ, 4, 8, group_size=128, container=CT)

LLAMA = ModelShape(
    "LlamaForCausalLM", 32, 4096, 32, 8, 128, 14336, 128256, 131072, tied_embeddings=False
)
PHI3 = dataclasses.replace(LLAMA, architecture="Phi3ForCausalLM", head_dim=96)
DEEPSEEK = dataclasses.replace(LLAMA, latent_dim=512, rope_dim=64)

ALL = frozenset(GPUS)
HOPPER = frozenset({"H100", "H100-NVL", "H200"})
FROM_ADA = HOPPER | {"L4", "L40S", "B200"}


@pytest.mark.parametrize(
    ("scheme", "runs_on", "native_on"),
    [
        (BF16, ALL, ALL),
        (INT8, ALL - {"B200"}, ALL - {"B200"}),
        (FP8, ALL, FROM_ADA),
        (FP8_W8A16, ALL, ALL),
        (GPTQ, ALL, ALL),
        (GPTQ_CT, ALL, ALL),
        (AWQ, ALL, ALL),
        (AWQ_CT, ALL, ALL),
        (W4A8, HOPPER, HOPPER),
        (dataclasses.replace(GPTQ_CT, bits=8, group_size=None), ALL, ALL),
        (dataclasses.replace(AWQ_CT, bits=8), HOPPER, HOPPER),
        (dataclasses.replace(GPTQ, symmetric=False), frozenset(), frozenset()),
        (QuantScheme(QuantMethod.GGUF, 4, container="gguf"), frozenset(), frozenset()),
        (QuantScheme(QuantMethod.SQUEEZELLM, 4), frozenset(), frozenset()),
        (dataclasses.replace(GPTQ_CT, bits=3), frozenset(), frozenset()),
    ],
    ids=lambda value: value.describe() if isinstance(value, QuantScheme) else "",
)
def test_which_scheme_runs_where(scheme, runs_on, native_on):
    found = {name: check_support(scheme, gpu) for name, gpu in GPUS.items()}
    assert {name for name, support in found.items() if support.runs} == runs_on
    assert {name for name, support in found.items() if support.native} == native_on
    for support in found.values():
        assert support.runs or (support.reason and support.fix), "a refusal says what to do"
        assert support.native or support.reason, "what is not as declared is said"


def test_a_refusal_states_need_have_and_fix():
    refused = check_support(INT8, GPUS["B200"])
    assert refused.reason == "INT8 W8A8 runs below compute capability 10.0; B200 has 10.0"
    assert "FP8" in refused.fix


def test_a_gpu_older_than_all_rules_runs_nothing():
    volta = dataclasses.replace(GPUS["T4"], name="V100", compute_capability=(7, 0))
    for scheme in (BF16, INT8, FP8, GPTQ, AWQ):
        assert not check_support(scheme, volta).runs


def test_turing_has_no_bfloat16():
    t4, l4 = GPUS["T4"], GPUS["L4"]
    assert not check_support(BF16, t4, dtype="bfloat16").runs
    assert check_support(BF16, l4, dtype="bfloat16").runs
    assert check_support(BF16, t4, dtype="float16") == check_support(BF16, l4, dtype="float16")
    assert "float16" in check_support(BF16, t4).reason
    assert not check_support(BF16, l4).reason


def test_quantized_kernels_have_no_float32():
    assert not check_support(GPTQ, GPUS["L4"], dtype="float32").runs
    assert check_support(BF16, GPUS["L4"], dtype="float32").runs


@pytest.mark.parametrize(
    ("gpu", "cache", "shape", "runs", "native"),
    [
        ("T4", "fp8_e5m2", LLAMA, False, False),
        ("A10G", "fp8", LLAMA, False, False),
        ("A10G", "fp8_e5m2", LLAMA, True, False),
        ("A10G", "fp8_e5m2", None, True, False),
        ("A10G", "fp8_e5m2", PHI3, False, False),
        ("A100-80GB", "fp8", DEEPSEEK, False, False),
        ("L4", "fp8", LLAMA, True, True),
        ("L4", "fp8_e4m3", PHI3, True, True),
        ("L4", "fp8_e5m2", LLAMA, True, True),
        ("H100", "fp8", DEEPSEEK, True, True),
        ("H100", "fp8_e5m2", DEEPSEEK, False, False),
    ],
)
def test_an_fp8_cache(gpu, cache, shape, runs, native):
    support = check_support(GPTQ_CT, GPUS[gpu], kv_cache_dtype=cache, shape=shape)
    assert (support.runs, support.native) == (runs, native)
    assert support.runs or support.fix
    assert check_support(GPTQ_CT, GPUS[gpu], kv_cache_dtype="auto", shape=shape).runs


def test_an_e5m2_cache_beside_fp8_weights():
    h100, container = GPUS["H100"], dataclasses.replace(FP8, container="fp8")
    assert not check_support(container, h100, kv_cache_dtype="fp8_e5m2").runs
    assert check_support(FP8, h100, kv_cache_dtype="fp8_e5m2").runs


def test_latent_attention_needs_ampere():
    assert not check_support(BF16, GPUS["T4"], shape=DEEPSEEK).runs
    assert check_support(BF16, GPUS["A10G"], shape=DEEPSEEK).runs


def test_every_recipe_has_a_rule():
    for recipe in RECIPES.values():
        assert any(rule.covers(recipe.scheme) for rule in RULES), recipe.name
        assert check_support(recipe.scheme, GPUS["H100"]).runs, recipe.name
