"""The family on one page: every variant has its row, what is not known is a dash."""

import pytest
import yaml

from serve_app.config.serve_file import check_serve_file
from serve_app.family.picture import draw
from serve_app.family.serve_file import write_family
from serve_app.family.table import BATCHES, HEAD, cells, markdown, rows
from serve_app.quantize.catalogue import recipe
from serve_app.reference.speed import Result, Sample
from tests.fakes.quality import quality_report

NAMES = ("baseline", "gptq", "rtn-w3", "gguf-q4-k-m")
RECIPES = [recipe(name) for name in NAMES]
TWINS = {name: name == "rtn-w3" for name in NAMES}
BYTES = dict(zip(NAMES, (4_000_000, 1_000_000, 800_000, 900_000), strict=True))


@pytest.fixture
def table():
    samples = tuple(
        Sample(name, block, batch, tokens=64 * batch, wall_s=seconds)
        for name, seconds in (("baseline", 1.0), ("gptq", 0.5))
        for block in (0, 1, 2)
        for batch in BATCHES
    )
    speed = Result(
        baseline="baseline", label="tiny", threads=1, tokens=64, prompt_tokens=16,
        samples=samples, facts={}, failed={"gguf-q4-k-m": "llama.cpp is not installed"}, machine={},
    )  # fmt: skip
    losses = dict(zip(NAMES[:3], (0.0, 0.01, 0.05), strict=True))
    return rows(RECIPES, BYTES, TWINS, quality_report(losses), speed)


def test_each_recipe_has_a_row_against_the_baseline(table):
    assert [row.name for row in table] == list(NAMES)
    assert [row.bytes_ratio for row in table] == [1.0, 0.25, 0.2, 0.225]
    assert table[1].tokens_per_s == (128.0, 1024.0, 4096.0)
    assert [row.engine for row in table] == ["vllm", "vllm", "vllm, twin", "llamacpp"]


def test_a_missing_figure_has_its_reason(table):
    assert table[2].why_no_speed == "a twin's speed would be the dense weights'"
    assert table[3].why_no_speed == "llama.cpp is not installed"
    assert table[3].quality is None
    assert cells(table[3])[5:] == ("-",) * 7
    assert not table[1].why_no_speed


def test_the_markdown_has_a_cell_for_every_head(table):
    text = markdown(table, ["one note"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(NAMES)
    widths = {len(line.replace("\\|", "").split("|")) for line in lines}
    assert widths == {len(HEAD) + 2}
    assert "89.1% (88.1%-90.1%)" in text
    assert "- one note" in text


def test_all_but_the_baseline_sleep_until_they_are_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
    (tmp_path / "reference" / "rtn-w3-twin").mkdir(parents=True)
    path = tmp_path / "serve.yaml"
    write_family(path, RECIPES, port=8123)
    assert [args.name for args in check_serve_file(path)] == list(NAMES)
    router, first, *others = yaml.safe_load(path.read_text())["applications"]
    user_config = router["deployments"][0]["user_config"]
    assert user_config["split"] == {"baseline": 10_000, "gptq": 0, "rtn-w3": 0, "gguf-q4-k-m": 0}
    assert user_config["sleepers"] == ["gptq", "rtn-w3", "gguf-q4-k-m"]
    assert "deployments" not in first
    scalings = [each["deployments"][0]["autoscaling_config"] for each in others]
    assert {scaling["min_replicas"] for scaling in scalings} == {0}
    twin = others[1]["args"]
    assert (twin["checkpoint"], twin["method"]) == ("reference://rtn-w3-twin", "unquantized")
    assert others[2]["args"]["engine"]["kind"] == "llamacpp"


def test_the_picture_is_drawn_also_of_variants_that_nobody_judged(table, tmp_path):
    draw(table, tmp_path / "family.png")
    assert (tmp_path / "family.png").read_bytes().startswith(b"\x89PNG")
