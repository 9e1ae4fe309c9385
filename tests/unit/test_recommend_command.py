"""`quantile recommend` as a whole, over the folders of made load runs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serve_app.advise.evidence import AxisKind
from serve_app.config.serve_file import check_serve_file, load_serve_file, router_user_config
from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import encode_report
from serve_app.domain.units import GIB, MIB
from serve_app.recommend.cli import parse_size, parse_weights, recommend
from tests.fakes.quality import quality_report
from tests.fakes.run_folders import campaign, write_run

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "tests/fixtures/model_configs/llama-3.1-8b.json"
MODEL = "llama-3.1-8b-instruct"
TARGET = {"model": MODEL, "variants": ["bf16", "fp8", "awq"], "baseline": "bf16"}


@pytest.fixture
def command():
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(recommend)

    def run(*arguments):
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return run


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "stages", campaign(target=TARGET))


@pytest.fixture
def prod(tmp_path):
    """The shipped file, whose variants are called as those of the run."""
    text = (ROOT / "configs/prod.yaml").read_text().replace("fp16", "bf16")
    text = text.replace("dtype: bf16", "dtype: float16")
    (tmp_path / "prod.yaml").write_text(text)
    facts = (ROOT / "configs/prod.facts.json").read_text().replace("/fp16", "/bf16")
    (tmp_path / "prod.facts.json").write_text(facts)
    return tmp_path / "prod.yaml"


def test_without_an_evaluation_it_is_open_and_says_what_to_measure(command, stages, tmp_path):
    done = command(stages, "--out", tmp_path / "out")
    assert done.exit_code == 3, done.output
    assert "No decision" in done.output and "measure next: evaluate fp8" in done.output
    found = json.loads((tmp_path / "out" / "recommendation.json").read_bytes())
    assert (found["verdict"], found["chosen"], found["change"]) == ("inconclusive", None, None)
    assert found["evidence"]["variants"][0]["memory"] is None


@pytest.fixture
def quality(tmp_path):
    """All within 1 % of the baseline, and known to a tenth of that."""
    path = tmp_path / "quality.json"
    losses = {"bf16": 0.0, "fp8": 0.0005, "awq": 0.004}
    path.write_bytes(encode_report(quality_report(losses, model=MODEL)))
    return path


def report_of(folder: Path) -> dict:
    return json.loads((folder / "recommendation.json").read_bytes())


def test_a_decision_with_its_change_applied_and_reread(command, stages, prod, quality, tmp_path):
    before, out, copy = prod.read_text(), tmp_path / "out", tmp_path / "new" / "prod.yaml"
    more = ["--config", prod, "--quality", quality, "--out", out, "--patched", copy]
    done = command(stages, *more)
    assert done.exit_code == 0, (done.output, done.exception)
    found = report_of(out)
    assert (found["verdict"], found["chosen"]) == ("pass", "fp8")  # equal in quality, and faster
    assert "Serve fp8" in done.output and found["sentences"][0] in " ".join(done.output.split())
    assert prod.read_text() == before
    assert [args.name for args in check_serve_file(copy)] == [
        name for name in ("bf16", "fp8", "awq") if name in found["change"]["variants"]
    ]
    assert found["change"]["removed"] == ["bf16", "int8", "gptq"]
    content = load_serve_file(copy)
    config = router_user_config(content["applications"][0], copy)
    assert config.split["fp8"] == 10_000 and config.fallback[0] == "fp8"
    diff = (out / "serve-config.diff").read_text()
    (tmp_path / "again").mkdir()
    shutil.copy(prod, tmp_path / "again" / "prod.yaml")
    subprocess.run(
        ["patch", str(tmp_path / "again" / "prod.yaml")], input=diff, text=True, check=True
    )
    assert (tmp_path / "again" / "prod.yaml").read_text() == copy.read_text()
    done = command(stages, *more[:-2], "--write")
    assert done.exit_code == 0 and prod.read_text() == copy.read_text()
    assert report_of(out)["change"]["diff"] == diff
    assert command(stages, *more[:-2]).exit_code == 0
    found = report_of(out)  # on the changed file, which says it already
    assert found["chosen"] == "fp8" and found["change"]["diff"] == ""
    assert found["evidence"]["variants"][0]["memory"] is None  # bf16 is no longer served


def test_the_packing_is_of_the_gpus_that_there_are(command, stages, prod, quality, tmp_path):
    out = tmp_path / "out"
    done = command(
        stages, "--config", prod, "--quality", quality, "--out", out, "--gpu", "L4", "--gpus", "1",
        "--goal", "memory-bound", "--patched", tmp_path / "l4.yaml",
    )  # fmt: skip
    found = report_of(out)
    assert done.exit_code == 0, (done.output, done.exception)
    assert found["chosen"] == "fp8" and found["change"]["gpus"] == 1
    assert found["change"]["variants"] == ["fp8"] and found["change"]["left_out"]
    assert found["change"]["usd_per_hour"] == pytest.approx(0.8048)
    (args,) = check_serve_file(tmp_path / "l4.yaml")
    assert args.gpu.type == "L4" and 0.5 < args.gpu.fraction <= 1
    costs = {v["name"]: v["cost_usd_per_million"] for v in found["evidence"]["variants"]}
    assert all(costs.values())
    capacity = next(v for v in found["evidence"]["variants"] if v["name"] == "fp8")["capacity"]
    tokens = capacity["output_tokens_per_s"]["value"]
    assert costs["fp8"]["value"] == pytest.approx(0.8048 / 3600 / tokens * 1e6)


def test_memory_in_bytes_leaves_the_small_one(command, stages, prod, quality, tmp_path):
    out = tmp_path / "out"
    done = command(
        stages, "--config", prod, "--quality", quality, "--out", out, "--gpu", "L4",
        "--goal", "memory-bound", "--memory", "12GiB",
    )  # fmt: skip
    assert (done.exit_code, report_of(out)["chosen"]) == (0, "awq"), done.output
    done = command(
        stages, "--config", prod, "--quality", quality, "--out", out, "--gpu", "L4",
        "--goal", "memory-bound", "--memory", "1GiB",
    )  # fmt: skip
    assert done.exit_code == 1 and "No variant qualifies" in done.output
    assert not (out / "serve-config.diff").exists()  # that of the run before


def test_a_price_without_a_gpu(command, stages, quality, tmp_path):
    out = tmp_path / "out"
    command(stages, "--quality", quality, "--out", out, "--usd-per-hour", "0.36")
    for each in report_of(out)["evidence"]["variants"]:
        tokens = each["capacity"]["output_tokens_per_s"]["value"]
        assert each["cost_usd_per_million"]["value"] == pytest.approx(100 / tokens)
    command(stages, "--quality", quality, "--out", out, "--goal", "cheapest")
    found = report_of(out)
    assert {each["cost_usd_per_million"] for each in found["evidence"]["variants"]} == {None}
    assert found["verdict"] == "inconclusive" and "--usd-per-hour" in found["next_steps"][0]


def test_a_bar_of_zero_is_asked_of_pairs_as_well(command, stages, quality, tmp_path):
    out = tmp_path / "out"
    done = command(
        stages, "--quality", quality, "--out", out, "--goal", "balanced", "--quality-bar", "0"
    )
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert {each["margin"] for each in report_of(out)["evidence"]["contrasts"]["quality"]} == {0.0}


def test_a_file_that_cannot_be_changed_keeps_the_recommendation(
    command, stages, prod, quality, tmp_path
):
    text = prod.read_text()
    prod.write_text(text.replace("split: {bf16", "split: &split {bf16") + "\nx: *split\n")
    out = tmp_path / "out"
    done = command(stages, "--config", prod, "--quality", quality, "--out", out)
    assert done.exit_code == 0 and "no change: " in done.output
    assert report_of(out)["chosen"] == "fp8" and "by hand" in report_of(out)["no_change"]
    done = command(stages, "--config", prod, "--quality", quality, "--out", out, "--write")
    assert isinstance(done.exception, ConfigError) and "by hand" in str(done.exception)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "other"}, ConfigError, "the evaluation is of model 'other'"),
        ({"baseline": "fp8"}, ConfigError, "the evaluation is of baseline 'fp8'"),
        ({"baseline": "fp7"}, ConfigError, "need distinct variants"),
        ({"schema": 99}, ConfigError, "need a quality report of schema 1, have 99"),
        ({"variants": 3}, ConfigError, "is no quality report"),
        ({"nonsense": 3}, ConfigError, "is no quality report"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(
    command, stages, quality, tmp_path, change, error, message
):
    quality.write_text(json.dumps(json.loads(quality.read_text()) | change))
    done = command(stages, "--quality", quality, "--out", tmp_path / "out")
    assert isinstance(done.exception, error) and message in str(done.exception)


def test_a_baseline_whose_evaluation_is_broken_is_an_error(command, stages, quality, tmp_path):
    content = json.loads(quality.read_text())
    content["variants"][0] |= {"verdict": "error", "reason": "no answers", "score": None}
    quality.write_text(json.dumps(content))
    done = command(stages, "--quality", quality, "--out", tmp_path / "out")
    assert done.exit_code == 3 and "The evidence is broken" in done.output
    assert report_of(tmp_path / "out")["verdict"] == "error"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "4"], "name it"),
        (["--gpu", "L4"], "need the Serve file"),
        (["--write"], "need the Serve file"),
        (["--goal", "memory-bound"], "needs --memory"),
        (["--memory", "much"], "give bytes"),
        (["--weights", "speed=1"], "names: quality, latency, memory, cost"),
        (["--level", "night"], "no load level night in the runs; they have light, medium, heavy"),
        (["--latency", "e2e-p42"], "known: e2e-p50"),
        (["--quality", "no.json"], "no.json"),
        (["--usd-per-hour", "0"], "need a price above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(command, stages, tmp_path, arguments, message):
    done = command(stages, *arguments, "--out", tmp_path / "out")
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_serve_file_of_another_model_is_refused(command, stages, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text((ROOT / "configs/prod.yaml").read_text().replace(MODEL, "other"))
    done = command(stages, "--config", other, "--assume", LLAMA, "--out", tmp_path / "out")
    assert isinstance(done.exception, ConfigError) and "serves other" in str(done.exception)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("1000", 1000), ("1.5GiB", 3 * GIB // 2), ("512 mib", 512 * MIB)]
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1TB", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="--memory"):
        parse_size(text)


def test_weights():
    assert parse_weights(None) == dict.fromkeys(AxisKind, 1.0)
    assert parse_weights("cost=0, quality=2.5")[AxisKind.QUALITY] == 2.5
    for text in ("quality", "quality=x", "quality=-1", "quality=inf", "quality=nan",
                 "quality=0,latency=0,memory=0,cost=0"):  # fmt: skip
        with pytest.raises(ConfigError, match="--weights"):
            parse_weights(text)


def test_the_command_has_examples(command):
    shown = command("--help").output
    assert "quantile recommend reports/compare" in shown and "inconclusive" in shown
