import json
import struct

import pytest
import typer

from serve_app.config.gpus import load_gpus
from serve_app.domain.errors import CheckpointError, ConfigError
from serve_app.domain.quant import QuantMethod
from serve_app.domain.units import GIB
from serve_app.node.host import cpu_flags, has_amx
from serve_app.quantize import check_cli
from serve_app.quantize.catalogue import recipe, recipes
from serve_app.quantize.check_cli import check_model, chosen_recipe, format_found
from serve_app.quantize.files import bytes_to_hash, check_files
from serve_app.quantize.findings import error, require_none, warning
from serve_app.quantize.memory import PROCESS_BYTES, JobFacts, job_bound
from serve_app.quantize.preflight import (
    Target,
    check_disk,
    check_job,
    check_making,
    check_memory,
    check_serving,
    job_facts,
    parameters_of,
    quantized_bytes,
)
from serve_app.quantize.support_cpu import Cpu
from serve_app.quantize.targets import Linear, is_covered, linears
from serve_app.store.inspect import read_checkpoint
from serve_app.store.manifest import write_manifest
from serve_app.store.source import LocalSource
from tests.fakes.checkpoints import (
    AWQ,
    CT_FP8,
    CT_MIXED,
    CT_W4,
    FLOAT8,
    GPTQ,
    NATIVE_PACKED,
    PACKED,
    write_checkpoint,
)

GPUS = load_gpus()
CPU = Target(Cpu.AVX512, "vllm", "float16")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}


def tensors(hidden=128, inner=256, kv=64, layers=2):
    found = {
        "model.embed_tokens.weight": ("BF16", [512, hidden]),
        "model.norm.weight": ("BF16", [hidden]),
        "lm_head.weight": ("BF16", [512, hidden]),
    }
    for i in range(layers):
        at, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        found |= {
            f"model.layers.{i}.input_layernorm.weight": ("BF16", [hidden]),
            f"{at}.q_proj.weight": ("BF16", [hidden, hidden]),
            f"{at}.k_proj.weight": ("BF16", [kv, hidden]),
            f"{at}.o_proj.weight": ("BF16", [hidden, hidden]),
            f"{mlp}.gate.weight": ("BF16", [8, hidden]),
            f"{mlp}.gate_proj.weight": ("BF16", [inner, hidden]),
            f"{mlp}.down_proj.weight": ("BF16", [hidden, inner]),
        }
    return found


def base(folder, **sizes):
    write_checkpoint(folder, tensors(**sizes), **CONFIG)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def contents(folder, **sizes):
    return read_checkpoint(LocalSource(base(folder, **sizes)))


def codes(findings, severity="error"):
    return [each.code for each in findings if each.severity == severity]


def looked_at(folder):
    return check_files(LocalSource(folder), hash_files=True)


def test_a_sound_base_has_no_errors_and_says_what_little_is_gained(tmp_path):
    files = looked_at(base(tmp_path))
    assert files.findings == ()
    found = list(check_making(files.contents, recipe("gptq"), CPU))
    assert codes(found) == []
    (small,) = [each for each in found if each.code == "small_model"]
    before = files.contents.checkpoint.weight_bytes
    after = quantized_bytes(files.contents, recipe("gptq"))
    assert f"({after / before:.2f} of it)" in small.have


def test_the_figures_of_four_bits(tmp_path):
    """N*K/2 bytes and a 2-byte scale for 128 of them; embeddings, head, norms and router stay."""
    known = contents(tmp_path)
    weights = 2 * (128 * 128 + 64 * 128 + 128 * 128 + 2 * 256 * 128)
    stays = known.checkpoint.weight_bytes - 2 * weights
    assert sum(each.weights for each in linears(known.tensors)) == weights
    assert quantized_bytes(known, recipe("gptq")) == stays + weights // 2 + 2 * weights // 128
    asymmetric = quantized_bytes(known, recipe("awq"))
    assert asymmetric == stays + weights // 2 + 2 * weights // 128 + weights // 256
    assert parameters_of(known) * 2 == known.checkpoint.weight_bytes


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_can_be_checked_on_a_sound_base(tmp_path, name):
    known = contents(tmp_path)
    target = Target(Cpu.AVX512, recipe(name).engine.kind, recipe(name).engine.dtype)
    assert codes(check_making(known, recipe(name), target)) == []
    assert job_bound(job_facts(known), recipe(name)).total_bytes > PROCESS_BYTES


def test_a_quantized_base_cannot_be_quantized_again(tmp_path):
    known = read_checkpoint(LocalSource(write_checkpoint(tmp_path, NATIVE_PACKED, GPTQ)))
    (found,) = check_making(known, recipe("awq"), CPU)
    assert (found.severity, found.code) == ("error", "format")
    assert "--method gptq" in found.fix


@pytest.mark.parametrize(
    ("stored", "config", "method", "ok"),
    [
        (NATIVE_PACKED, GPTQ, QuantMethod.GPTQ, True),
        (NATIVE_PACKED, GPTQ, QuantMethod.AWQ, False),
        (PACKED, CT_W4, QuantMethod.RTN, True),
        (PACKED, CT_W4, QuantMethod.INT8_W8A8, False),
    ],
)
def test_the_declared_method_has_to_be_the_checkpoints(tmp_path, stored, config, method, ok):
    known = read_checkpoint(LocalSource(write_checkpoint(tmp_path, stored, config)))
    parts = format_found(known.checkpoint.scheme, known.config)
    assert codes(check_serving(known, parts, method, CPU)) == ([] if ok else ["method"])


def test_an_index_that_names_missing_shards_lists_each(tmp_path):
    base(tmp_path)
    shards = ["model.safetensors", "b.safetensors", "c.safetensors"]
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = looked_at(tmp_path)
    assert codes(files.findings) == ["shards", "shards"]
    assert [each.need.split(",")[0] for each in files.findings] == shards[1:]
    assert files.contents is None


def test_a_cut_file_and_a_missing_tokenizer_are_both_told(tmp_path):
    base(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert sorted(codes(looked_at(tmp_path).findings)) == ["damaged", "tokenizer"]


def test_digests_are_compared_and_the_bytes_told(tmp_path):
    base(tmp_path)
    manifest = write_manifest(tmp_path)
    told = []
    source = LocalSource(tmp_path)
    assert check_files(source, hash_files=True, advance=told.append).findings == ()
    assert sum(told) == manifest.total_bytes == bytes_to_hash(source)
    weights = tmp_path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    (found,) = looked_at(tmp_path).findings
    assert found.code == "digest"
    assert "model.safetensors" in found.need
    assert check_files(LocalSource(tmp_path), hash_files=False).findings == ()


def test_a_manifest_that_names_other_sizes_or_files(tmp_path):
    base(tmp_path)
    write_manifest(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ }")
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert set(codes(looked_at(tmp_path).findings)) == {"digest"}
    assert len(looked_at(tmp_path).findings) == 2
    (tmp_path / "manifest.json").write_text("[]")
    assert "manifest" in codes(looked_at(tmp_path).findings)
    assert bytes_to_hash(LocalSource(tmp_path)) is None


def test_an_empty_folder(tmp_path):
    assert codes(looked_at(tmp_path).findings) == ["files"]


def test_a_gguf_without_a_tokenizer(tmp_path):
    name, value = b"general.architecture", b"llama"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(name)) + name
    head += struct.pack("<I", 8) + struct.pack("<Q", len(value)) + value
    (tmp_path / "m.gguf").write_bytes(head)
    found = looked_at(tmp_path).findings
    assert codes(found)[0] == "tokenizer"
    assert "tokenizer.json" in found[0].fix


@pytest.mark.parametrize(
    ("sizes", "name", "code"),
    [
        ({"inner": 192}, "gptq", ["group_size"]),
        ({"inner": 192}, "gptq-g64", []),
        ({"kv": 20}, "gptq-native", ["packing", "dimension"]),
        ({"kv": 20}, "awq-native", ["packing", "dimension"]),
        ({"kv": 40}, "gptq", ["dimension"]),
        ({"kv": 40}, "int8", []),
        ({"inner": 192}, "mixed-down-16", []),
        ({"inner": 100}, "mixed-down-16", ["dimension"]),
        ({"inner": 100}, "squeezellm-w4", ["inputs"]),
        ({"inner": 100}, "gguf-q8-0", ["inputs"]),
        ({"inner": 100}, "gguf-f16", []),
    ],
)
def test_what_does_not_divide(tmp_path, sizes, name, code):
    chosen = recipe(name)
    target = Target(Cpu.AVX512, chosen.engine.kind, chosen.engine.dtype)
    assert codes(check_making(contents(tmp_path, **sizes), chosen, target)) == code


def test_a_group_size_that_fits_is_named(tmp_path):
    found = list(check_making(contents(tmp_path, inner=192), recipe("gptq"), CPU))
    (wrong,) = [each for each in found if each.code == "group_size"]
    assert wrong.fix.startswith("--group-size 64 or 32")
    assert "down_proj with 192 inputs" in wrong.have
    assert wrong.have.endswith("and 1 more")


def test_k_quants_of_short_rows_are_warned_of(tmp_path):
    target = Target(Cpu.AVX512, "llamacpp", "float16")
    found = list(check_making(contents(tmp_path), recipe("gguf-q4-k-m"), target))
    assert "inputs_wider" in codes(found, "warning")
    assert codes(found) == []


def test_a_split_over_gpus(tmp_path):
    known = contents(tmp_path)
    l4 = GPUS["L4"]
    split = {n: Target(l4, "vllm", "float16", named=True, tensor_parallel=n) for n in (1, 2, 3, 4)}
    assert codes(check_making(known, recipe("gptq"), split[1])) == []
    assert codes(check_making(known, recipe("gptq"), split[2])) == ["group_size"]
    assert codes(check_making(known, recipe("gptq-g64"), split[2])) == []
    wrong = list(check_making(known, recipe("gptq"), split[3]))
    assert codes(wrong)[0] == "tensor_parallel"
    assert wrong[0].fix == "--tensor-parallel 2"


@pytest.mark.parametrize(
    ("name", "gpu", "dtype", "code"),
    [
        ("int8", "B200", "bfloat16", ["kernel"]),
        ("int8", "T4", "bfloat16", ["dtype_or_engine"]),
        ("int8", "T4", "float16", []),
        ("gptq-w3", "H100", "float16", ["kernel"]),
        ("fp8-dynamic", "A10G", "float16", []),
    ],
)
def test_a_gpu_too_old_or_too_new(tmp_path, name, gpu, dtype, code):
    target = Target(GPUS[gpu], "vllm", dtype, named=True)
    found = list(check_making(contents(tmp_path), recipe(name), target))
    assert codes(found) == code
    assert all(each.fix for each in found)


def test_without_a_gpu_named_a_missing_kernel_is_a_warning(tmp_path):
    found = list(check_making(contents(tmp_path), recipe("gptq-w3"), CPU))
    assert codes(found) == []
    assert "kernel" in codes(found, "warning")


@pytest.mark.parametrize(
    ("name", "dtype", "machine"),
    [("int8", "float16", Cpu.AVX512), ("fp8-block", "float16", Cpu.AMX)],
)
def test_dtypes_that_abort_on_cpu(tmp_path, name, dtype, machine):
    found = check_making(contents(tmp_path), recipe(name), Target(machine, "vllm", dtype))
    assert "dtype_or_engine" in codes(found)


def test_the_bound_by_hand():
    """One block of two layers: GPTQ's Hessians are 4 K^2 each, and three of the larger one."""
    layers = (
        Linear("model.layers.0.a_proj", 10, 100, 2000),
        Linear("model.layers.0.b_proj", 10, 300, 6000),
        Linear("model.layers.1.a_proj", 10, 200, 4000),
    )
    facts = JobFacts(10_000, layers, hidden_size=64, vocab_size=100)
    bound = job_bound(facts, recipe("gptq"))
    assert bound.making["Hessians"] == 4 * (100**2 + 300**2) + 3 * 4 * 300**2
    assert bound.making["calibration activations"] == 2 * 96 * 128 * 64 * 2
    assert bound.measuring["dense float32 weights"] == 80_000
    assert bound.total_bytes == PROCESS_BYTES + sum(bound.making.values())
    assert "while making" in bound.describe()
    assert "Hessians" not in job_bound(facts, recipe("rtn")).making
    assert job_bound(facts, recipe("baseline")).making == {}


def test_a_70b_model_is_bound_by_its_hessians_and_dense_weights():
    layers = tuple(
        Linear(f"model.layers.{i}.{name}", n, k, 2 * n * k)
        for i in range(80)
        for name, n, k in (("q_proj", 8192, 8192), ("down_proj", 8192, 28672))
    )
    bound = job_bound(JobFacts(70 * 10**9, layers, 8192, 128256), recipe("gptq"))
    assert bound.making["Hessians"] > 12 * GIB
    assert bound.total_bytes > 8 * 70 * 10**9


def test_too_little_memory_or_disk_is_an_error_with_the_parts(tmp_path):
    known = contents(tmp_path)
    need = job_bound(job_facts(known), recipe("gptq")).total_bytes
    assert list(check_memory(known, recipe("gptq"), need)) == []
    (found,) = check_memory(known, recipe("gptq"), need - 1)
    assert "libraries" in found.need
    assert codes(check_disk(known, recipe("gptq"), 0)) == ["disk"]
    assert codes(check_disk(known, recipe("gptq"), GIB)) == []


def test_a_job_that_can_go_on_tells_its_bound_first(tmp_path):
    lines = check_job(base(tmp_path / "base"), recipe("gptq"), tmp_path / "new" / "out")
    assert lines[0].startswith("memory: at most")
    assert any("small_model" in line for line in lines)


def test_a_job_that_cannot_lists_every_error(tmp_path):
    base(tmp_path, inner=192, kv=40)
    with pytest.raises(ConfigError, match=r"1 error\(s\)\n  error group_size: need .*; to do: "):
        check_job(tmp_path, recipe("gptq"), tmp_path / "out")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"2 error\(s\)"):
        check_job(tmp_path, recipe("gptq"), tmp_path / "out")


def test_the_command_exits_with_2_and_every_finding(tmp_path, capsys):
    base(tmp_path, inner=192)
    with pytest.raises(typer.Exit) as ended:
        check_model(str(tmp_path), QuantMethod.GPTQ)
    assert ended.value.exit_code == 2
    shown = capsys.readouterr().out
    assert "error group_size" in shown
    assert "warning small_model" in shown
    check_model(str(tmp_path), QuantMethod.GPTQ, group_size=64)
    assert "nothing stands against it" in capsys.readouterr().out


def test_the_command_checks_a_quantized_checkpoint_as_what_is_served(tmp_path, capsys):
    write_checkpoint(tmp_path, NATIVE_PACKED, {**GPTQ, "desc_act": True})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(typer.Exit):
        check_model(str(tmp_path), QuantMethod.GPTQ, gpu="L4")
    assert "g_idx" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        check_model(str(tmp_path), QuantMethod.AWQ)
    assert "error method" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "need --method"),
        ({"method": QuantMethod.AWQ, "recipe": "gptq"}, "is of method gptq, not awq"),
        ({"recipe": "gtpq"}, "unknown recipe"),
        ({"recipe": "gptq", "gpu": "H1000"}, "unknown GPU"),
        ({"recipe": "int8", "group_size": 64}, "has no groups"),
        ({"recipe": "gptq", "group_size": 0}, "at least 1"),
        ({"recipe": "gptq", "tensor_parallel": 0}, "at least 1"),
    ],
)
def test_arguments_that_lead_nowhere(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        check_model(str(base(tmp_path)), **arguments)


def test_a_place_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        check_model(str(tmp_path / "no"), QuantMethod.GPTQ)


def test_each_method_means_a_recipe_of_its_own():
    assert {method: chosen_recipe(method, None, None).method for method in QuantMethod} == {
        method: method for method in QuantMethod
    }
    assert set(check_cli.RECIPES) == set(QuantMethod)


def test_another_group_size_is_another_recipe():
    finer = chosen_recipe(QuantMethod.GPTQ, None, 64)
    assert finer.scheme == recipe("gptq-g64").scheme
    assert finer.digest() == recipe("gptq-g64").digest()


@pytest.mark.parametrize(
    ("stored", "config", "order", "floating", "n_parts"),
    [
        (NATIVE_PACKED, GPTQ, False, False, 1),
        (NATIVE_PACKED, {**GPTQ, "desc_act": True}, True, False, 1),
        (NATIVE_PACKED, AWQ, False, False, 1),
        (FLOAT8, CT_FP8, False, True, 1),
        (PACKED, CT_MIXED, False, False, 2),
    ],
)
def test_what_a_configuration_says_beyond_the_scheme(
    tmp_path, stored, config, order, floating, n_parts
):
    known = read_checkpoint(LocalSource(write_checkpoint(tmp_path, stored, config)))
    parts = format_found(known.checkpoint.scheme, known.config).parts
    assert [part.group_order for part in parts] == [order] * n_parts
    assert [part.floating for part in parts] == [floating] * n_parts


def test_layers_by_name():
    attention, forward = recipe("mixed").make.layers
    assert is_covered(attention, (), "model.layers.0.self_attn.q_proj")
    assert not is_covered(attention, (), "model.layers.0.mlp.up_proj")
    assert is_covered(forward, (), "model.layers.0.mlp.up_proj")
    (everything,) = recipe("gptq").make.layers
    assert not is_covered(everything, ("re:.*down_proj",), "model.layers.0.mlp.down_proj")
    assert not is_covered(everything, ("lm_head",), "lm_head")


def test_errors_are_raised_together_and_warnings_are_not():
    require_none([warning("a", "n", "h", "f")], "place")
    with pytest.raises(ConfigError, match=r"place: 2 error\(s\)"):
        require_none([error("a", "n", "h", "f"), error("b", "n", "h", "f")], "place")


def test_the_flags_of_a_cpu(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: x\nflags\t\t: avx512f amx_tile\n")
    assert cpu_flags(tmp_path) == {"avx512f", "amx_tile"}
    assert not has_amx(tmp_path)
    (tmp_path / "cpuinfo").write_text("flags\t: amx_tile amx_bf16 amx_int8\n")
    assert has_amx(tmp_path)
    assert cpu_flags(tmp_path / "no") == frozenset()
