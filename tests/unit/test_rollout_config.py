"""Rollout files are refused early, with what to change."""

import math
from pathlib import Path

import pytest
import yaml

from serve_app.config.rollout import read_rollout
from serve_app.domain.errors import ConfigError
from serve_app.rollout.guards import Kind
from serve_app.rollout.plan import AdvanceOn
from serve_app.rollouts.evidence_probes import read_prompts
from tests.fakes.rollouts import rollout_config, rollout_file

METRICS = [{"kind": "metrics", "urls": ["http://head:8080/metrics"]}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate": "int8"}, "both int8"),
        ({"steps": [{"share_bp": 5000}, {"share_bp": 100}]}, "must grow"),
        ({"steps": [{"share_bp": 10_000}]}, "less than 10000"),
        ({"steps": [{"share_bp": 100, "advance_on": "no_breach"}]}, "absence of bad news"),
        ({"steps": []}, "at least 1 item"),
        ({"steps": [{"share_bp": 100, "min_requests": 9999}]}, "above max_requests 3000"),
        ({"alpha": 0.0}, "alpha"),
        ({"evidence": METRICS}, "metrics have no pairs"),
        (
            {
                "evidence": METRICS,
                "guards": {"errors": {"margin": 0.1}},
                "steps": [{"share_bp": 0, "advance_on": "no_breach"}, {"share_bp": 100}],
            },
            "no traffic that metrics could tell of",
        ),
        ({"evidence": [{"kind": "metrics"}]}, "file_sd"),
        ({"evidence": [{"kind": "guess"}]}, "probes"),
        ({"guards": {"disagreement": {"margin": 0.1}}}, "`floor: true`"),
        (
            {
                "evidence": [{"kind": "campaign", "folder": "x"}],
                "guards": {"wrong": {"margin": 0.1}},
            },
            "need answers",
        ),
        ({"guards": {"errors": {"margin": 0.01, "tolerated": 0.02}}}, "above margin"),
        ({"guards": {"limits": [{"of": "ttft", "at_most": 0.1}]}}, "above_s"),
        ({"guards": {"limits": [{"of": "error", "at_most": 0.1, "above_s": 2}]}}, "above_s"),
        ({"guards": {"ttft": {"tails": [{"quantile": 0.99, "margin": 0.1}] * 2}}}, "repeats"),
        ({"target": {"kind": "serve", "url": "http://h:8265/api"}}, "url"),
        ({"guard": {}}, "not a known key"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        rollout_config(**changes)


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("- a\n")
    with pytest.raises(ConfigError, match="need a mapping"):
        read_rollout(file)


def test_paths_are_from_the_files_folder(tmp_path):
    file = tmp_path / "r.yaml"
    probes = {"kind": "probes", "prompts": "prompts.jsonl"}
    metrics = {"kind": "metrics", "file_sd": "/tmp/ray/pages.json"}
    file.write_text(yaml.safe_dump(rollout_file(evidence=[probes, metrics])))
    first, second = read_rollout(file).evidence
    assert first.prompts == tmp_path / "prompts.jsonl"
    assert second.file_sd == Path("/tmp/ray/pages.json")


def test_the_plan_has_each_steps_own_limits_over_the_common_ones():
    steps = [{"share_bp": 0, "advance_on": "no_breach", "min_requests": 7}, {"share_bp": 900}]
    plan = rollout_config(steps=steps).to_plan()
    assert [step.min_requests for step in plan.steps] == [7, 50]
    assert [step.advance_on for step in plan.steps] == [
        AdvanceOn.NO_BREACH,
        AdvanceOn.NON_INFERIOR,
    ]


def test_guards_come_out_in_their_own_units():
    guards = {
        "errors": {"margin": 0.01, "tolerated": 0.001},
        "ttft": {
            "mean": {"margin": 0.1, "tolerated": 0.05},
            "tails": [{"quantile": 0.99, "margin": 0.02}],
        },
        "disagreement": {"margin": 0.2, "tolerated": 0.1, "against_floor": False},
        "limits": [{"of": "tpot", "above_s": 0.1, "at_most": 0.05}],
    }
    found = {guard.name: guard for guard in rollout_config(guards=guards).to_plan().guards}
    assert found["ttft mean"].margin == pytest.approx(math.log(1.1))
    assert found["ttft above P99"].quantile == 0.99
    assert found["tpot limit 0.1 s"].kind is Kind.LIMIT
    assert found["tpot limit 0.1 s"].tolerated == found["tpot limit 0.1 s"].margin == 0.05
    assert list(found) == [
        "errors",
        "ttft mean",
        "ttft above P99",
        "disagreement",
        "tpot limit 0.1 s",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": "x"}', "line 2: need"),
        ('{"messages": [], "expects": "x"}', "unknown keys expects"),
        ('{"messages": [], "expect": 3}', "`expect` is a text"),
    ],
)
def test_prompts_are_read_line_by_line(tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' + line)
    with pytest.raises(ConfigError, match=message):
        read_prompts(file)


def test_no_prompts_are_refused_and_none_given_are_the_reference_models(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="has no prompt"):
        read_prompts(tmp_path / "empty.jsonl")
    built_in = read_prompts(None)
    assert len(built_in) > 100 and all(each["expect"] for each in built_in)
