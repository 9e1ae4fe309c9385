import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from serve_app import cli
from serve_app.domain.errors import CheckpointError, ConfigError, PlanError
from serve_app.domain.quant import QuantMethod
from serve_app.fleet.cli import plan as plan_command
from serve_app.fleet.read import assumed_scheme
from serve_app.planning.footprint import Calibration

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "tests/fixtures/model_configs/llama-3.1-8b.json"


@pytest.fixture
def prod(tmp_path):
    """A copy of the shipped production file, and of what is known of its checkpoints."""
    for name in ("prod.yaml", "prod.facts.json"):
        shutil.copy(ROOT / "configs" / name, tmp_path / name)
    return tmp_path / "prod.yaml"


def run(capsys, config: Path, **options) -> str:
    plan_command(config, **options)
    return capsys.readouterr().out


def as_json(capsys, config: Path, **options) -> dict:
    return json.loads(run(capsys, config, as_json=True, **options))


def edited(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    return config


def test_the_shipped_production_file_covers_its_plan(capsys):
    out = run(capsys, ROOT / "configs/prod.yaml", check=True)
    for name in ("fp16", "fp8", "int8", "gptq", "awq"):
        assert f"{name}: needs 0." in out


def test_the_shipped_file_has_the_numbers_of_this_version(prod, capsys):
    """A formula that changes must be followed by `quantile plan configs/prod.yaml --write`."""
    before = prod.read_text()
    assert "has these numbers already" in run(capsys, prod, write=True)
    assert prod.read_text() == before


def test_two_four_bit_variants_share_one_gpu(capsys):
    found = as_json(capsys, ROOT / "configs/prod.yaml", gpu=["L4"], gpus=4)
    shared = [
        gpu
        for gpu in found["gpus"]
        if {share["name"] for share in gpu["replicas"]} == {"gptq", "awq"}
    ]
    assert len(shared) == 1
    assert found["needed_gpus"] == found["lower_bound_gpus"] == 4
    assert found["exact"]
    for gpu in found["gpus"]:
        needs = [
            found["variants"][share["name"]]["plan"]["need_bytes"] * share["count"]
            for share in gpu["replicas"]
        ]
        usable = found["variants"][gpu["replicas"][0]["name"]]["plan"]["usable_bytes"]
        assert sum(needs) <= usable


def test_one_gpu_too_few_is_said_with_need_have_and_fixes_that_help(prod, capsys):
    with pytest.raises(PlanError) as caught:
        run(capsys, prod, gpu=["L4"], gpus=3)
    assert "0 (1-4)" in capsys.readouterr().out  # the table is shown even so
    message = str(caught.value)
    assert "take 4 L4" in message
    assert "there are 3" in message
    assert "fix: 1 more L4 (4 in all)" in message
    assert caught.value.exit_code == 1
    factor = float(message.split("concurrency times ")[1].split(" ")[0])
    content = yaml.safe_load(prod.read_text())
    for application in content["applications"][1:]:
        application["args"]["gpu"]["concurrency"] *= factor
    for application in content["applications"]:  # bounds and checks of scaling are not at issue
        for deployment in application.get("deployments", []):
            if application["name"] != "router":
                deployment.pop("autoscaling_config", None)
    prod.write_text(yaml.safe_dump(content))
    assert as_json(capsys, prod, gpu=["L4"], gpus=3)["fits"]


def test_what_cannot_run_on_a_gpu_is_refused_with_the_reason(capsys):
    with pytest.raises(PlanError, match=r"int8 on B200: INT8 W8A8 runs below .* FP8 variant"):
        run(capsys, ROOT / "configs/prod.yaml", gpu=["B200"])


def test_a_variant_too_large_names_the_changes_that_make_it_fit(capsys):
    with pytest.raises(PlanError, match=r"fp16 on T4: needs 2\d.* a T4 has .*gpu.type"):
        run(capsys, ROOT / "configs/prod.yaml", gpu=["T4"])


def test_a_share_that_was_lowered_by_hand_fails_the_check(prod, capsys):
    text = prod.read_text()
    fraction = yaml.safe_load(text)["applications"][4]["args"]["gpu"]["fraction"]
    edited(prod, f"fraction: {fraction:.4f}", "fraction: 0.3000")
    with pytest.raises(PlanError, match=r"gptq has gpu.fraction 0.3000 of a L4"):
        run(capsys, prod, check=True)


def test_a_cache_below_the_concurrency_fails_the_check(prod, capsys):
    cache = yaml.safe_load(prod.read_text())["applications"][1]["args"]["engine"]
    old = cache["kv_cache_memory_bytes"]
    edited(prod, f"kv_cache_memory_bytes: {old}", f"kv_cache_memory_bytes: {old // 2}")
    with pytest.raises(PlanError, match=r"holds 2\.00 requests .* asks for 4"):
        run(capsys, prod, check=True)


def test_an_unreachable_checkpoint_says_how_to_plan_without_it(prod, capsys, monkeypatch):
    def refuse(uri, dtype_bytes=2):
        raise CheckpointError(f"{uri}: no credentials")

    monkeypatch.setattr("serve_app.fleet.read.checkpoint_facts", refuse)
    prod.with_suffix(".facts.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no credentials.*--assume"):
        run(capsys, prod)
    assert as_json(capsys, prod, assume=LLAMA)["fits"]
    run(capsys, prod, assume=LLAMA, write=True)
    assert prod.with_suffix(".facts.json").exists()
    assert as_json(capsys, prod)["fits"]


def test_several_types_are_compared_by_price(capsys):
    out = run(capsys, ROOT / "configs/prod.yaml", compare=True)
    compared = out.split("the cheapest first:")[1]
    names = re.findall(r"^(\S+) +\d+ GPUs?  ", compared, re.MULTILINE)
    prices = [float(price) for price in re.findall(r"([\d.]+) USD per hour", compared)]
    assert names[0] == "L4"
    assert names[-1] == "H100-NVL"  # without a price in the catalogue
    assert prices == sorted(prices)
    assert "T4         cannot serve all; fp16" in compared


def test_pictures_are_drawn(tmp_path, capsys):
    run(capsys, ROOT / "configs/prod.yaml", png=tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpu": ["L5"]}, "no GPU type of the catalogue; known: T4"),
        ({"gpu": ["L4=many"]}, "write TYPE=COUNT"),
        ({"gpus": 4}, "--gpus counts the GPUs of one"),
        ({"gpu": ["L4=2"], "gpus": 4}, "--gpus counts"),
        ({"check": True, "write": True}, "takes the file as it is"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says, capsys):
    with pytest.raises(ConfigError, match=says):
        run(capsys, ROOT / "configs/prod.yaml", **options)


def test_a_file_without_gpus_says_what_to_add(capsys):
    with pytest.raises(PlanError, match=r"bf16 has no `gpu`: add"):
        run(capsys, ROOT / "configs/local.yaml")


def test_the_command_has_its_place_and_an_example():
    cli._mount()
    result = CliRunner().invoke(cli.app, ["plan", "--help"])
    assert result.exit_code == 0
    assert "Example: quantile plan configs/prod.yaml" in " ".join(result.output.split())


def test_the_usual_storage_of_each_method_can_be_planned():
    for method in QuantMethod:
        assert assumed_scheme(method).method is method


def fleet_of(tmp_path: Path, **engine) -> Path:
    """One variant of Llama-3.1-8B on a GPU, as little as a file may say."""
    variant = {
        "name": "a",
        "route_prefix": "/variants/a",
        "import_path": "serve_app.app:variant",
        "args": {
            "model": "m",
            "name": "a",
            "checkpoint": "s3://bucket/a",
            "method": "gptq",
            "gpu": {"type": "L4", "concurrency": 1},
            "engine": {"dtype": "float16", "max_model_len": 4096, **engine},
        },
    }
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": "serve_app.app:router",
        "args": {"model": "m"},
        "deployments": [{"name": "VariantRouter", "user_config": {"split": {"a": 10_000}}}],
    }
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [router, variant]}))
    return path


def test_a_tensor_parallel_variant_takes_whole_gpus_of_one_node(tmp_path, capsys):
    config = fleet_of(tmp_path, tensor_parallel_size=2)
    found = as_json(capsys, config, assume=LLAMA, gpu=["L4=4"], gpus_per_node=2)
    assert found["needed_gpus"] == 2
    assert [gpu["used_bp"] for gpu in found["gpus"]] == [10_000, 10_000]
    with pytest.raises(PlanError, match=r"of one node|nodes of 1"):
        run(capsys, config, assume=LLAMA, gpu=["L4=4"], gpus_per_node=1)


def test_measured_bytes_reach_the_plan(tmp_path, capsys, monkeypatch):
    def measured(uri, gpu, sizes):
        assert (uri, gpu) == ("s3://bucket/a", "L4")
        return Calibration(activation_bytes=12345)

    monkeypatch.setattr("serve_app.fleet.cli.calibrations", lambda: measured)
    found = as_json(capsys, fleet_of(tmp_path), assume=LLAMA)
    assert found["variants"]["a"]["plan"]["activation"] == {"bytes": 12345, "source": "measured"}


def test_a_checkpoint_of_another_method_is_refused(prod, capsys):
    edited(prod, "method: awq", "method: fp8")
    with pytest.raises(CheckpointError, match=r"awq declares fp8, .*Declare `method: awq`"):
        run(capsys, prod)


def test_float32_weights_take_twice_the_bytes(tmp_path, capsys):
    def weights(dtype: str) -> int:
        config = edited(fleet_of(tmp_path, dtype=dtype), "method: gptq", "method: unquantized")
        found = as_json(capsys, config, assume=LLAMA, gpu=["H100"])
        return found["variants"]["a"]["plan"]["weights"]["bytes"]

    assert weights("float32") == pytest.approx(2 * weights("float16"), rel=1e-6)


def test_a_file_with_autoscaling_gets_its_first_plan(prod, capsys):
    shipped = prod.read_text()
    prod.write_text(
        re.sub(r", fraction: 0\.\d+|\n +(kv_cache_memory_bytes|gpu_memory_u).*", "", shipped)
    )
    assert "fraction" not in prod.read_text().split("applications:")[1]
    run(capsys, prod, write=True)
    assert yaml.safe_load(prod.read_text()) == yaml.safe_load(shipped)


def test_a_move_that_would_break_the_file_leaves_it_as_it_is(prod, capsys):
    before = prod.read_text()
    with pytest.raises(ConfigError, match="budget needs the GPUs of type L40S"):
        run(capsys, prod, gpu=["L40S"], write=True)
    assert prod.read_text() == before


@pytest.mark.parametrize("name", ["nowhere/plan.png", "plan.odd"])
def test_a_picture_that_cannot_be_drawn_is_an_error_of_ours(tmp_path, capsys, name):
    with pytest.raises(ConfigError, match="cannot draw"):
        run(capsys, ROOT / "configs/prod.yaml", png=tmp_path / name)


def test_a_long_name_leaves_room_for_the_numbers(tmp_path, capsys):
    name = "a" * 60
    config = fleet_of(tmp_path)
    config.write_text(
        config.read_text()
        .replace("name: a\n", f"name: {name}\n")
        .replace("/variants/a", f"/variants/{name}")
        .replace("a: 10000", f"{name}: 10000")
    )
    out = run(capsys, config, assume=LLAMA)
    assert re.search(r"a{10,}… +gptq W4A16 g128 +L4 +5\.\d\dc", out)
