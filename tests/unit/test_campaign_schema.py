from pathlib import Path

import pytest
import yaml

from loadtests.campaign import load_campaign, parse_campaign
from serve_app.domain.errors import ConfigError


def minimal() -> dict:
    return {
        "target": {"model": "m"},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [1, 2]},
        "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1, "duration_s": 1}],
    }


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
        (("search",), {"duration_s": 1, "low_per_s": 1, "high_per_s": 2}),
        (("same_within",), 1.0),
        (("repeats",), 0),
        (("workload", "sessions"), {"turns": [2, 1], "think_s": [0, 1]}),
        (("workload", "sessions"), {"turns": [0, 1], "think_s": [0, 1]}),
        (("workload", "shared_prefix"), {"share": 1.1, "tokens": 4}),
        (("workload", "prompts"), {"kind": "synthetic", "mix": []}),
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


@pytest.mark.parametrize(
    "url",
    [
        "http://h:99999",
        "http://h:abc",
        "http://h:0",
        "http://a..b",
        "http://.a",
        "http://hôte",
        "http://a b",
        "http://" + "a" * 64,
        "http://[::z]",
        "http:///metrics",
        "file:///etc/passwd",
    ],
)
def test_urls_need_a_host_and_a_port_that_can_be(url):
    raw = minimal()
    raw["target"]["base_url"] = url
    with pytest.raises(ConfigError, match=r"target\.base_url: .*need http\(s\)://host"):
        parse_campaign(raw, "test")
    with pytest.raises(ConfigError, match=r"metrics\.urls\.0: .*need http\(s\)://host"):
        parse_campaign(minimal() | {"metrics": {"urls": [url]}}, "test")


@pytest.mark.parametrize(
    "url", ["http://[::1]:80", "https://a_b.c-d.:8443/prefix", "http://10.0.0.1", "http://h:65535"]
)
def test_urls_that_can_be_are_kept(url):
    assert parse_campaign(minimal(), "test").with_target(base_url=url).target.base_url == url


def closed_loop(**changes):
    stage = {"name": "c", "kind": "concurrency", "concurrency": 3, "duration_s": 1}
    return minimal() | {"stages": [stage | changes]}


def test_no_verdict_comes_from_a_closed_loop():
    raw = closed_loop() | {"slo": {"ttft_ms": 1}}
    (stage,) = parse_campaign(raw, "test").stages
    assert stage.gate is False
    with pytest.raises(ConfigError, match=r"stage c: need gate: false.*coordinated omission"):
        parse_campaign(closed_loop(gate=True) | {"slo": {"ttft_ms": 1}}, "test")
    parse_campaign(closed_loop(gate=True), "test")
    assert parse_campaign(minimal(), "test").stages[0].gate is True


def test_a_closed_loop_needs_room_for_its_users():
    parse_campaign(closed_loop() | {"in_flight_cap": 3}, "test")
    with pytest.raises(ConfigError, match=r"stage c: need in_flight_cap of 3 or more.*have 2"):
        parse_campaign(closed_loop() | {"in_flight_cap": 2}, "test")


@pytest.mark.parametrize("changes", [{"blocks": 2}, {"repeats": 3}])
def test_what_a_search_would_ignore_is_refused(changes):
    search = {"duration_s": 1, "low_per_s": 1, "high_per_s": 2}
    raw = minimal() | {"stages": [], "search": search, "slo": {"ttft_ms": 1}}
    parse_campaign(raw, "test")
    with pytest.raises(ConfigError, match="search: need blocks and repeats of 1"):
        parse_campaign(raw | changes, "test")


def test_an_attainment_that_no_sample_can_show_is_refused():
    parse_campaign(minimal() | {"slo": {"ttft_ms": 1, "attainment": 0.9999}}, "test")
    with pytest.raises(ConfigError, match=r"slo\.attainment: .*need less than 1.*interval"):
        parse_campaign(minimal() | {"slo": {"ttft_ms": 1, "attainment": 1.0}}, "test")


@pytest.mark.parametrize(
    "text",
    [
        "on: 1",
        "~: 1",
        "a: &all [*all]",
        "target: &all {model: *all}",
        "a: 2024-13-45",
        "a: " + "[" * 2000 + "]" * 2000,
    ],
)
def test_yaml_that_is_no_plain_data_is_the_callers_fault(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml: (not a campaign: need text for keys|cannot)"):
        load_campaign(tmp_path / "c.yaml")


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


def test_paths_are_taken_from_the_campaigns_folder(tmp_path):
    raw = minimal()
    raw["workload"]["prompts"] = {"kind": "jsonl", "path": "prompts.jsonl"}
    raw["stages"].append(trace_stage())
    raw["metrics"] = {"file_sd": "/tmp/sd.json"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    campaign = load_campaign(tmp_path / "c.yaml")
    assert campaign.workload.prompts.path == tmp_path / "prompts.jsonl"
    assert campaign.stages[1].path == tmp_path / "trace.csv"
    assert campaign.metrics.file_sd == Path("/tmp/sd.json")


def trace_stage(name="t"):
    return {"name": name, "kind": "trace", "format": "azure", "path": "trace.csv", "duration_s": 5}


def test_trace_prompts_need_traces_alone():
    raw = minimal() | {"workload": {"prompts": {"kind": "trace"}}}
    with pytest.raises(ConfigError, match="all are traces"):
        parse_campaign(raw, "test")
    with pytest.raises(ConfigError, match="all are traces"):
        parse_campaign(raw | {"stages": [trace_stage(), *raw["stages"]]}, "test")
    search = {"duration_s": 1, "low_per_s": 1, "high_per_s": 2}
    with pytest.raises(ConfigError, match="all are traces"):
        parse_campaign(raw | {"stages": [], "search": search, "slo": {"ttft_ms": 1}}, "test")
    parse_campaign(raw | {"stages": [trace_stage()]}, "test")
    raw["workload"]["max_tokens"] = [1, 2]
    with pytest.raises(ConfigError, match="leave it out, trace prompts say it"):
        parse_campaign(raw | {"stages": [trace_stage()]}, "test")


@pytest.mark.parametrize(
    ("stage", "workload"),
    [
        (trace_stage(), {"sessions": {"turns": [1, 2], "think_s": [0, 1]}}),
        (trace_stage(), {"shared_prefix": {"share": 0.5, "tokens": 4}}),
        (
            {"name": "c", "kind": "concurrency", "concurrency": 2, "duration_s": 1},
            {"sessions": {"turns": [1, 2], "think_s": [0, 1]}},
        ),
    ],
)
def test_what_a_stage_cannot_play_is_refused(stage, workload):
    raw = minimal()
    raw["stages"].append(stage)
    parse_campaign(raw, "test")
    raw["workload"] |= workload
    with pytest.raises(ConfigError, match=f"stage {stage['name']}: .*leave out"):
        parse_campaign(raw, "test")


def test_the_time_of_stages_and_of_a_search():
    raw = minimal() | {"blocks": 3, "repeats": 2, "warmup_s": 2, "cooldown_s": 1}
    assert parse_campaign(raw, "test").planned_s(4) == 3 * 2 * 4 * (1 + 3)
    search = {"duration_s": 7, "low_per_s": 1, "high_per_s": 2, "max_probes": 5, "max_repeats": 2}
    raw |= {"stages": [], "search": search, "slo": {"ttft_ms": 1}, "blocks": 1, "repeats": 1}
    assert parse_campaign(raw, "test").planned_s(4) == 4 * 5 * 2 * 10
