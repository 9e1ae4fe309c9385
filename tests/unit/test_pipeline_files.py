"""Pipeline files: those that ship, and what is refused before anything runs."""

import copy
from pathlib import Path

import pytest

from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import ConfigError
from serve_app.pipeline.pipeline_file import base_digest, read_pipeline, steps_of
from serve_app.pipeline.serve_file import write_serve_file
from tests.fakes.pipeline_tools import RichTools
from tests.fakes.pipelines import CAMPAIGN, pipeline, write_pipeline

FOLDER = Path(__file__).parents[2] / "configs" / "pipelines"


def test_these_ship():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == {"reference", "smoke"}


@pytest.mark.parametrize(("name", "minutes"), [("reference", 6.5), ("smoke", 1.3)])
def test_it_loads_as_long_as_its_text_leaves_room_for(name, minutes):
    file = read_pipeline(FOLDER / f"{name}.yaml")
    assert file.planned_s() <= 60 * minutes
    assert [step.stage.do for step in steps_of(file)] == [
        "make", "measure", "make", "validate", "make", "validate", "recommend",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["reference", "smoke"])
def test_its_gated_stages_support_a_p99_and_its_batches_fit_the_engine(name):
    file = read_pipeline(FOLDER / f"{name}.yaml")
    for campaign in file.campaigns.values():
        gated = [stage for stage in campaign.stages if stage.gate]
        n = sum(stage.rate_per_s * stage.duration_s * campaign.blocks for stage in gated)
        assert not gated or n > 100
        most = max((s.concurrency for s in campaign.stages if s.kind == "concurrency"), default=0)
        assert most <= file.pipeline.engine["max_num_seqs"]


def test_variants_go_by_their_recipes_and_the_baseline_is_always_served(tmp_path):
    content = pipeline()
    content["stages"][5]["recipes"] = ["gptq"]
    file = read_pipeline(write_pipeline(tmp_path / "p.yaml", content))
    assert file.pipeline.variants == ("baseline", "int8", "gptq", "awq")
    target = file.campaigns["validate-4-bit"].target
    assert target.variants == ("baseline", "gptq") and target.baseline == "baseline"
    assert (target.model, target.base_url) == ("m", "http://127.0.0.1:8000")
    assert file.campaigns["measure"].target.variants == ("baseline",)


def test_a_recipe_and_a_campaign_may_be_files_beside_the_pipeline(tmp_path):
    shipped = FOLDER.parent / "quantize" / "gptq.yaml"
    (tmp_path / "mine.yaml").write_text(shipped.read_text())
    write_pipeline(tmp_path / "load.yaml", {**CAMPAIGN, "target": {"model": "x"}})
    content = pipeline()
    content["stages"][4]["recipes"] = ["mine.yaml"]
    content["stages"][5]["campaign"] = "load.yaml"
    file = read_pipeline(write_pipeline(tmp_path / "p.yaml", content))
    assert file.pipeline.variants == ("baseline", "int8", "mine")
    assert file.campaigns["validate-4-bit"].target.model == "m"


def test_on_a_gpu_each_variant_gets_its_planned_share(tmp_path):
    content = pipeline(gpu={"type": "L4", "concurrency": 4})
    file = read_pipeline(write_pipeline(tmp_path / "p.yaml", content))
    made = RichTools(tmp_path / "models").make(file, ["baseline", "int8", "gptq"], tmp_path)
    write_serve_file(tmp_path / "serve.yaml", file, made, None)
    served = check_serve_file(tmp_path / "serve.yaml")
    assert [args.name for args in served] == ["baseline", "int8", "gptq"]
    for args in served:
        assert args.gpu.type == "L4" and 0 < args.gpu.fraction < 1
        assert args.engine.kv_cache_memory_bytes and args.engine.gpu_memory_utilization


def stage(i, **changes):
    def change(content):
        content["stages"][i] |= changes

    return change


def drop(*indexes):
    def change(content):
        content["stages"] = [s for i, s in enumerate(content["stages"]) if i not in indexes]

    return change


def top(**changes):
    return lambda content: content.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (top(typo=1), "typo is not a known key"),
        (top(base="reference://gptq"), "need a folder or reference://baseline"),
        (top(engine={"dtype": "float16"}), "leave out dtype: the recipe says it"),
        (top(engine={"max_model": 1}), "max_model"),
        (top(gpu={"type": "L4", "fraction": 0.5}), "leave out fraction"),
        (top(stages=[]), "at least 1 item"),
        (drop(0), "the first makes the baseline"),
        (stage(0, recipes=["baseline", "int8"]), "the first makes the baseline"),
        (stage(1, name="int8"), "need distinct names"),
        (stage(2, recipes=["int9"]), "unknown recipe 'int9'"),
        (stage(2, recipes=["none.yaml"]), "none.yaml"),
        (stage(4, recipes=["int8"]), "make each recipe once"),
        (stage(3, recipes=["awq"]), "awq is not made before it"),
        (drop(2), "needs a variant besides the baseline"),
        (stage(5, campaign=None), "needs a validation with a campaign"),
        (stage(6, evidence="validate-int8"), "named validate-int8; have validate-4-bit"),
        (stage(6, goal="memory-bound"), "memory-bound needs `memory_bytes`"),
        (stage(1, campaign={**CAMPAIGN, "blocks": 0}), "stage measure: campaign"),
        (stage(1, campaign={**CAMPAIGN, "target": {"model": "m"}}), "leave out `target`"),
        (stage(1, campaign={k: v for k, v in CAMPAIGN.items() if k != "slo"}), "no `slo`"),
        (stage(1, campaign={**CAMPAIGN, "stages": CAMPAIGN["stages"][1:]}), "none can be judged"),
        (stage(5, campaign={**CAMPAIGN, "stages": CAMPAIGN["stages"][1:]},
               gates={"slo": False, "latency": {"max_ratio": 2.0}}), "none can be judged"),
        (stage(1, gates={"latency": {"max_ratio": 2.0}}), "nothing else is served"),
        (stage(1, campaign="none.yaml"), "none.yaml"),
        (stage(1, campaign={**CAMPAIGN, "stages": [],
                            "search": {"duration_s": 5, "low_per_s": 1, "high_per_s": 2},
                            "blocks": 1}), "have a search"),
        (stage(1, campaign={**CAMPAIGN,
                            "workload": {"prompts": {"kind": "jsonl", "path": "p.jsonl"},
                                         "max_tokens": [8, 8]}}), "relative to nothing"),
        (stage(3, evaluate={"sets": ["trivia"]}), "no task set 'trivia'"),
        (stage(3, evaluate={"sets": ["facts", "facts"]}), "need distinct names"),
        (stage(3, evaluate={"sets": ["none.jsonl"]}), "none.jsonl"),
        (stage(3, evaluate={"text": "none.txt"}), "none.txt"),
        (stage(3, split={"shares_bp": {"baseline": 1}}), "sums to 10000, have 1"),
        (stage(3, split={"shares_bp": {"baseline": 5000, "awq": 5000}}), "that it serves"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tmp_path, change, message):
    content = copy.deepcopy(pipeline())
    change(content)
    path = write_pipeline(tmp_path / "p.yaml", content)
    with pytest.raises(ConfigError) as caught:
        read_pipeline(path)
    assert message in str(caught.value)


def test_no_pipeline_at_all(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the pipeline"):
        read_pipeline(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[]")
    with pytest.raises(ConfigError, match="a mapping with model, base and stages"):
        read_pipeline(tmp_path / "list.yaml")


def test_a_base_is_another_one_when_a_file_changes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = base_digest(tmp_path)
    (tmp_path / "config.json").touch()
    assert base_digest(tmp_path) == before  # told by content, not by time
    (tmp_path / "config.json").write_text("[]")
    assert base_digest(tmp_path) != before
