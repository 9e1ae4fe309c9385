import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import serve_app.quantize
from serve_app.domain.errors import ConfigError
from serve_app.domain.quant import QuantMethod
from serve_app.quantize.catalogue import DEMO, read_recipe, recipe, recipes, recipes_dir
from serve_app.quantize.pins import QUANTIZERS, pinned_versions, public_version
from serve_app.quantize.runner import quantize_python


def written(folder: Path, name: str, **changes) -> Path:
    """A copy of the gptq recipe with changes at `make__bits`-like paths; None takes a key away."""
    values = recipe("gptq").model_dump(mode="json", exclude={"name"})
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = values
        for key in outer:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_recipe_is_called_as_its_file_and_the_demos_come_first():
    assert {name: each.name for name, each in recipes().items()} == {
        name: name for name in recipes()
    }
    assert tuple(recipes())[: len(DEMO)] == DEMO


def test_every_method_of_the_mission_has_a_recipe():
    assert {each.method for each in recipes().values()} == set(QuantMethod)


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'gtpq'.*baseline, int8, gptq, awq"):
        recipe("gtpq")


def test_digest_follows_the_weights_and_nothing_else(tmp_path):
    gptq = recipe("gptq")
    finer = read_recipe(written(tmp_path, "finer", make__layers__0__weights__group_size=64))
    stricter = read_recipe(written(tmp_path, "stricter", gate__engine=1e-9, summary="the same"))
    assert finer.digest() != gptq.digest()
    assert stricter.digest() == gptq.digest()
    assert len({each.digest() for each in recipes().values()}) == len(recipes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"make__layers__0__weights__group_size": None}, "group_size. goes with .per: group"),
        ({"make__layers__0__weights__bits": 9}, "bits"),
        ({"make__layers__0__weights__grupsize": 64}, "grupsize"),
        ({"make__layers": []}, "name `layers` to quantize"),
        ({"make__steps__0__damping": 0}, "greater than 0"),
        ({"make__steps__0__do": "magic"}, "magic"),
        ({"make__tool": "auto-gptq"}, "auto-gptq"),
        ({"gate": None}, "gate is required"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_place(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, "wrong", **changes))


def test_a_recipe_file_names_no_name(tmp_path):
    file = written(tmp_path, "mine")
    file.write_text("name: other\n" + file.read_text())
    with pytest.raises(ConfigError, match="called as its file is"):
        read_recipe(file)


def test_a_native_layout_has_one_precision(tmp_path):
    values = yaml.safe_load((recipes_dir() / "mixed.yaml").read_text())
    values["make"]["layout"] = "gptq"
    file = tmp_path / "native-mix.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="one precision"):
        read_recipe(file)


def test_what_needs_no_text_is_not_calibrated():
    needless = {name for name, each in recipes().items() if not each.needs_calibration}
    assert {"baseline", "rtn", "int8-per-tensor", "fp8-dynamic", "gguf-q4-k-m"} <= needless
    assert not needless & {"gptq", "awq", "int8", "fp8-static", "kv-fp8", "squeezellm-w4"}


def test_four_bit_weights_never_run_in_bf16():
    """bf16 W4A16 runs as W4A8 on CPUs with AMX."""
    four_bit = [
        each for each in recipes().values()
        if (each.scheme.bits, each.scheme.activation_bits) == (4, 16)
    ]  # fmt: skip
    assert len(four_bit) > 8
    assert {each.engine.dtype for each in four_bit} == {"float16"}


def test_int8_never_runs_in_fp16():
    """vLLM's CPU worker aborts the process there."""
    int8 = [each for each in recipes().values() if each.method is QuantMethod.INT8_W8A8]
    assert {each.engine.dtype for each in int8} == {"bfloat16"}


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
