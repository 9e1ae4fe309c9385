import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import serve_app.quantize
from serve_app.domain.errors import ConfigError
from serve_app.quantize.pins import QUANTIZERS, pinned_versions, public_version
from serve_app.quantize.recipes import RECIPES, recipe
from serve_app.quantize.runner import quantize_python


def test_each_recipe_is_filed_under_its_name():
    assert {name: r.name for name, r in RECIPES.items()} == {name: name for name in RECIPES}


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'gtpq'.*baseline, int8, gptq, awq"):
        recipe("gtpq")


def test_digest_follows_the_weights_and_nothing_else():
    gptq = RECIPES["gptq"]
    finer = replace(gptq, scheme=replace(gptq.scheme, group_size=64))
    stricter = replace(gptq, tolerance=replace(gptq.tolerance, engine=1e-9))
    assert finer.digest() != gptq.digest()
    assert stricter.digest() == gptq.digest()
    assert len({r.digest() for r in RECIPES.values()}) == len(RECIPES)


def test_four_bit_weights_never_run_in_bf16():
    """bf16 W4A16 runs as W4A8 on CPUs with AMX."""
    four_bit = [r for r in RECIPES.values() if r.scheme.bits == 4]
    assert four_bit
    assert {r.engine_dtype for r in four_bit} == {"float16"}


def test_int8_never_runs_in_fp16():
    """vLLM's CPU worker aborts the process there."""
    assert RECIPES["int8"].engine_dtype == "bfloat16"


def test_every_quantizer_is_pinned_exactly():
    pins = pinned_versions()
    assert set(pins) == set(QUANTIZERS)
    path = Path(serve_app.quantize.__file__).with_name("constraints.txt")
    lines = path.read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s/@]+", line)] == []


def test_public_version_drops_the_build():
    assert public_version("2.13.0+cpu") == "2.13.0"


def test_missing_environment_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTIZE_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="QUANTIZE_PYTHON"):
        quantize_python()


def test_recipes_and_builds_load_no_engine_and_no_quantizer():
    """In a fresh interpreter: this one has loaded what other tests needed."""
    code = (
        "import sys, serve_app.quantize.recipes, serve_app.reference.cli;"
        "print(*{'torch', 'vllm', 'llmcompressor', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
