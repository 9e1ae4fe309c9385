from pathlib import Path

import pytest
import yaml

from loadtests.campaign import load_campaign, parse_campaign
from loadtests.plan.prompts import load_prompts
from loadtests.plan.cells import plan_cells
from serve_app.domain.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs" / "campaigns"
FILES = sorted(FOLDER.glob("*.yaml"))
VARIANTS = ["a", "b", "c", "d"]


def minimal() -> dict:
    return {
        "target": {"model": "m"},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [1, 2]},
        "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1, "duration_s": 1}],
    }


def test_there_are_campaigns():
    assert {file.stem for file in FILES} >= {"smoke", "compare"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_campaign_gives_a_p99(file):
    campaign = load_campaign(file).with_target(variants=VARIANTS)
    cells = plan_cells(campaign, n_prompts=100)
    for stage in campaign.stages:
        for variant in VARIANTS:
            measured = sum(
                request.phase == "measured"
                for cell in cells
                if (cell.stage, cell.variant) == (stage.name, variant)
                for request in cell.requests
            )
            assert measured > 100  # at 100 the P99 could be the second largest at best


def test_smoke_takes_about_a_minute_over_four_variants():
    assert load_campaign(FOLDER / "smoke.yaml").planned_s(4) < 60


def test_defaults():
    campaign = parse_campaign(minimal(), "test")
    assert campaign.target.variants == "all"
    assert campaign.slo is None
    assert campaign.validity.lag_p99_ms == 10.0
    with pytest.raises(ConfigError, match="resolve"):
        campaign.variant_names()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("rate",), 1),
        (("target", "url"), "http://x"),
        (("target", "base_url"), "ftp://x"),
        (("target", "base_url"), "http://x/v1"),
        (("target", "variants"), []),
        (("target", "variants"), ["a", "a"]),
        (("workload", "max_tokens"), [3, 2]),
        (("workload", "max_tokens"), [0, 2]),
        (("workload", "prompts"), {"kind": "csv"}),
        (("stages",), []),
        (("stages", 0, "kind"), "ramp"),
        (("stages", 0, "rate_per_s"), 0),
        (("stages", 0, "extra"), 1),
        (("stages", 0, "rate_per_s"), "5"),
        (("seed",), 1.5),
        (("blocks",), 0),
        (("slo",), {}),
        (("slo",), {"ttft": 5}),
        (("validity",), {"lag_p99_ms": -1}),
        (("in_flight_cap",), 0),
    ],
)
def test_wrong_campaigns_are_refused_with_the_field(where, value):
    raw = minimal()
    place = raw
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(ConfigError, match=str(where[0])):
        parse_campaign(raw, "test")


def test_two_stages_of_one_name_are_refused():
    raw = minimal()
    raw["stages"] *= 2
    with pytest.raises(ConfigError, match="distinct"):
        parse_campaign(raw, "test")


def test_unreadable_files_are_the_callers_fault(tmp_path):
    with pytest.raises(ConfigError):
        load_campaign(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError):
        load_campaign(tmp_path / "bad.yaml")


def test_prompt_files_are_found_beside_the_campaign(tmp_path):
    raw = minimal()
    raw["workload"]["prompts"] = {"kind": "jsonl", "path": "prompts.jsonl"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    source = load_campaign(tmp_path / "c.yaml").workload.prompts
    assert load_prompts(source) == ("one", "two")
    for text in ("", '{"prompt": 1}\n', '{"prompt": "x", "answer": "y"}\n'):
        (tmp_path / "prompts.jsonl").write_text(text)
        with pytest.raises(ConfigError):
            load_prompts(source)


def test_corpus_prompts():
    prompts = load_prompts(parse_campaign(minimal(), "test").workload.prompts)
    assert "What is the capital of France?" in prompts
