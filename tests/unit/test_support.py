import dataclasses

import pytest

from serve_app.config.gpus import load_gpus
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.planning.shape import ModelShape
from serve_app.quantize.catalogue import recipe, recipes
from serve_app.quantize.support import Format, How, format_of, served_here
from serve_app.quantize.support_cpu import CPU_RULES, Cpu, check_cpu, cpu_kind
from serve_app.quantize.support_gpu import check_stored, check_support
from serve_app.quantize.support_rules import Stored
from serve_app.quantize.support_table import SUPPORT_MD, support_markdown

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
        (QuantScheme(QuantMethod.SQUEEZELLM, 4), ALL, ALL),
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


MACHINES = [Cpu.AVX512, Cpu.AMX, *GPUS.values()]


def name_of(machine) -> str:
    return machine.value if isinstance(machine, Cpu) else machine.name


def served(name, machine, **more):
    chosen = recipe(name)
    engine, dtype = chosen.engine.kind, chosen.engine.dtype
    return served_here(format_of(chosen), engine, dtype, machine, **more)


@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_has_a_definite_answer_on_every_machine(name, machine):
    answer = served(name, machine)
    assert "no rule" not in answer.reason
    assert (answer.engine is None) == (answer.how is How.REFUSED)
    assert answer.how is How.AS_ITSELF or (answer.reason and answer.fix), "says why, and what to do"
    assert answer.native or answer.reason


TWINS = {
    "fp8-dynamic", "fp8-static", "gptq-act-order", "gptq-w2", "gptq-w3", "rtn-w2", "rtn-w3",
    "int8-weight-only",
}  # fmt: skip


@pytest.mark.parametrize(
    ("cpu", "twins"),
    [(Cpu.AVX512, TWINS | {"fp8-block"}), (Cpu.AMX, TWINS | {"int8-static-sym"})],
)
def test_what_is_judged_as_a_twin_on_cpus(cpu, twins):
    hows = {name: served(name, cpu).how for name in recipes()}
    assert {name for name, how in hows.items() if how is How.AS_TWIN} == twins
    assert How.REFUSED not in hows.values()


def test_all_but_plain_weights_and_llamacpp_need_avx512():
    runs = {name for name in recipes() if served(name, Cpu.PLAIN).how is How.AS_ITSELF}
    assert {recipe(name).method for name in runs} == {
        QuantMethod.UNQUANTIZED, QuantMethod.GGUF, QuantMethod.SQUEEZELLM,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "cpu", "dtype", "message"),
    [
        ("int8", Cpu.AVX512, "float16", "aborts the process"),
        ("fp8-block", Cpu.AMX, "float16", "no kernel"),
        ("gptq", Cpu.AVX512, "float32", "cpu_gemm_wna16"),
    ],
)
def test_a_dtype_that_kills_the_engine_is_refused_with_the_one_to_set(name, cpu, dtype, message):
    answer = served_here(format_of(recipe(name)), "vllm", dtype, cpu)
    assert answer.how is How.REFUSED
    assert message in answer.reason
    assert answer.fix.startswith("set dtype: b")


def test_bf16_four_bits_on_amx_says_what_is_set_against_w4a8():
    parts = format_of(recipe("gptq"))
    assert "VLLM_CPU_INT4_W4A8=0" in served_here(parts, "vllm", "bfloat16", Cpu.AMX).reason
    assert not served_here(parts, "vllm", "bfloat16", Cpu.AVX512).reason


def test_an_fp8_block_checkpoint_runs_on_amx_otherwise_than_declared():
    answer = served("fp8-block", Cpu.AMX)
    assert answer.how is How.AS_ITSELF
    assert not answer.native


@pytest.mark.parametrize(
    ("name", "engine", "installed", "how"),
    [
        ("gguf-q4-k-m", "llamacpp", {}, How.AS_ITSELF),
        ("gguf-q4-k-m", "llamacpp", {"has_llamacpp": False}, How.AS_TWIN),
        ("gguf-q4-k-m", "vllm", {}, How.AS_TWIN),
        ("gguf-q4-k-m", "vllm", {"has_gguf_plugin": True}, How.AS_ITSELF),
        ("gguf-f16", "vllm", {"has_gguf_plugin": True}, How.AS_TWIN),
        ("gptq", "llamacpp", {}, How.REFUSED),
    ],
)
def test_gguf_by_engine_and_by_what_is_installed(name, engine, installed, how):
    answer = served_here(format_of(recipe(name)), engine, "float16", Cpu.AVX512, **installed)
    assert answer.how is how
    assert how is How.AS_ITSELF or answer.fix


def test_details_that_a_scheme_does_not_tell():
    l4, h100 = GPUS["L4"], GPUS["H100"]
    assert not check_stored(Stored(GPTQ_CT, group_order=True), h100).runs
    assert not check_stored(Stored(GPTQ_CT, floating=True), h100).runs
    assert not check_stored(Stored(W4A8), h100).runs, "integers have a kernel on CPUs only"
    assert check_stored(Stored(W4A8, floating_activations=True), h100).runs
    assert not check_stored(Stored(W4A8, floating_activations=True), l4).runs


def test_a_mixed_variant_runs_where_all_its_precisions_do():
    mixed = format_of(recipe("mixed"))
    assert {part.scheme.method for part in mixed.parts} == {QuantMethod.INT8_W8A8, QuantMethod.GPTQ}
    assert served("mixed", GPUS["L4"]).how is How.AS_ITSELF
    assert served("mixed", GPUS["B200"]).how is How.AS_TWIN


def test_an_fp8_cache_of_a_recipe_needs_ada():
    assert served("gptq-kv-fp8", GPUS["A10G"]).how is How.AS_TWIN
    assert served("gptq-kv-fp8", GPUS["L4"]).how is How.AS_ITSELF
    assert served("gptq-kv-fp8", Cpu.AVX512).how is How.AS_ITSELF


def test_every_rule_for_cpus_is_reached():
    """A rule that an earlier one hides decides nothing."""
    fp4 = dataclasses.replace(GPTQ_CT, bits=4)
    odd = [
        Stored(fp4, floating=True),
        Stored(W4A8, floating_activations=True),
        Stored(dataclasses.replace(GPTQ, bits=8)),
    ]
    stored = [part for each in recipes().values() for part in format_of(each).parts] + odd
    first = {
        next(rule.name for rule in CPU_RULES if rule.covers(part))
        for part in stored
        if part.scheme.method is not QuantMethod.GGUF
    }
    assert first == {rule.name for rule in CPU_RULES}
    assert not any(check_cpu(part, Cpu.AMX).runs for part in odd)


def test_an_unknown_format_is_refused_by_name():
    odd = Stored(QuantScheme(QuantMethod.MIXED, 8, container=CT))
    answer = served_here(Format((odd,)), "vllm", "bfloat16", Cpu.AMX)
    assert "no rule for mixed W8A16" in answer.reason


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({"avx2"}, Cpu.PLAIN),
        ({"avx2", "avx512f"}, Cpu.AVX512),
        ({"avx512f", "amx_tile"}, Cpu.AVX512),
        ({"avx512f", "amx_tile", "amx_int8", "amx_bf16"}, Cpu.AMX),
        (set(), Cpu.PLAIN),
    ],
)
def test_the_kind_of_cpu_by_its_flags(flags, kind):
    assert cpu_kind(frozenset(flags)) is kind


def test_the_page_is_the_table():
    """Renew it with `python -m serve_app.quantize.support_table`."""
    assert SUPPORT_MD.read_text(encoding="utf-8") == support_markdown()
