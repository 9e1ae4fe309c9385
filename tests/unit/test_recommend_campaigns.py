"""What is taken from the folders of load runs, against what their own reports say."""

import json
import math
from itertools import combinations

import pytest

from loadtests.report.result import read_result
from serve_app.advise.evidence import latency_at
from serve_app.domain.errors import ConfigError
from serve_app.domain.verdict import Verdict
from serve_app.recommend.campaigns import read_runs
from serve_app.recommend.gather import Inputs, gather
from tests.fakes.run_folders import SPEED, campaign, write_run, write_search


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "stages")


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    return write_search(tmp_path_factory.mktemp("runs") / "search")


def contrast(measured, level, one, other):
    for each in measured.contrasts[latency_at(level)]:
        if (each.first, each.second) == (one, other):
            return each
        if (each.first, each.second) == (other, one):
            return each.reversed()
    raise KeyError((one, other))


def test_the_numbers_are_those_of_the_run(stages):
    measured, result = read_runs([stages], "e2e-p95"), read_result(stages)
    assert (measured.baseline, measured.names) == ("bf16", tuple(SPEED))
    assert [(level.name, level.is_gated) for level in measured.levels] == [
        (stage.name, stage.gate) for stage in result.campaign.stages
    ]
    for row in result.summaries:
        at = measured.at[row.variant][row.stage]
        known = row.latencies["e2e_user_ms"].with_failures
        p95 = next(q for q in known if q.p == 0.95)
        assert (at.latency_ms.value, at.latency_ms.low) == (p95.value, p95.low)
        assert at.slo == str(row.slo_verdict)


def test_every_pair_is_compared_and_agrees_with_the_runs_own_comparison(stages):
    measured, result = read_runs([stages], "e2e-p95"), read_result(stages)
    for level in measured.levels:
        pairs = {frozenset((c.first, c.second)) for c in measured.contrasts[latency_at(level.name)]}
        assert pairs == {frozenset(pair) for pair in combinations(SPEED, 2)}
    own = [c for c in result.comparisons if (c.metric, c.p) == ("e2e_user_ms", 0.95) and c.ratio]
    assert len(own) == 6  # failures reach the P95 of int8<b>: it has no ratio
    for each in own:
        found = contrast(measured, each.stage, each.variant, each.baseline)
        assert math.exp(-found.gain) == pytest.approx(each.ratio)
        assert math.exp(-found.high) == pytest.approx(each.low)


def test_the_faster_is_found_between_variants_of_which_none_is_the_baseline(stages):
    """fp8 takes 0.72 of bf16's time, awq 0.98: the run itself compares neither with the other."""
    measured = read_runs([stages], "e2e-p50")
    assert all(contrast(measured, x.name, "fp8", "awq").is_better for x in measured.levels)


def test_rows_that_the_client_made_decide_nothing(tmp_path):
    folder = write_run(tmp_path / "busy", campaign(validity={"client_cpu_share": 0.01}))
    measured = read_runs([folder], "e2e-p95")
    assert {at.slo for of in measured.at.values() for at in of.values()} == {Verdict.ERROR}
    found = [each for pairs in measured.contrasts.values() for each in pairs]
    assert found and not any(each.is_decided or each.is_not_worse for each in found)
    assert "invalid" in found[0].reason


def test_a_run_that_was_stopped_counts_for_what_is_whole(tmp_path):
    folder = write_run(tmp_path / "killed", keep=7)
    measured = read_runs([folder], "e2e-p95")
    assert any("7 of 72 cells" in note for note in measured.notes)
    found = [each for pairs in measured.contrasts.values() for each in pairs]
    assert not any(each.is_decided for each in found)  # one block has no interval


def test_the_capacity_is_the_bracket_of_the_search_for_one_replica(search):
    measured, result = read_runs([search], "e2e-p95"), read_result(search)
    assert measured.levels == ()
    for found in result.saturation:
        capacity = measured.capacity.get(found.variant)
        if found.highest_passed_per_s is None:
            assert capacity is None
            continue
        assert capacity.requests_per_s.value == found.highest_passed_per_s
        assert capacity.requests_per_s.high == found.confirmed_fail_per_s
        row = next(
            row for row in result.summaries
            if (row.variant, row.rate_per_s) == (found.variant, found.highest_passed_per_s)
        )  # fmt: skip
        assert capacity.output_tokens_per_s.value == pytest.approx(
            row.output_tokens_per_s, rel=0.05
        )
    assert measured.capacity


def set_replicas(folder, variant, count):
    manifest = json.loads((folder / "run.json").read_bytes())
    manifest["variants"][variant]["replicas"] = count
    (folder / "run.json").write_text(json.dumps(manifest))


def test_an_unknown_count_of_replicas_is_no_capacity_and_no_cost(tmp_path):
    """A gateway that counts none, and two runs that do not agree: one replica is a guess."""
    folder = write_search(tmp_path / "search")
    assert "fp8" in read_runs([folder], "e2e-p95").capacity
    set_replicas(folder, "fp8", None)
    measured = read_runs([folder], "e2e-p95")
    assert "fp8" not in measured.capacity and "bf16" in measured.capacity
    assert any("how many replicas there were of fp8," in note for note in measured.notes)
    fp8 = gather(Inputs((folder,), usd_per_hour=1.0)).evidence["fp8"]
    assert fp8.cost_usd_per_million is None and "how many replicas" in fp8.cost_gap


def test_runs_that_count_other_replicas_do_not_agree(tmp_path):
    folders = [write_run(tmp_path / "stages"), write_search(tmp_path / "search")]
    set_replicas(folders[0], "fp8", 2)
    measured = read_runs(folders, "e2e-p95")
    assert "fp8" not in measured.capacity and "bf16" in measured.capacity


def test_stages_bound_the_capacity_from_below_where_nothing_failed(stages):
    measured, result = read_runs([stages], "e2e-p95"), read_result(stages)
    for name in SPEED:
        rows = sorted(
            (row for row in result.summaries if row.variant == name), key=lambda r: r.rate_per_s
        )
        passed = []
        for row in rows:
            if str(row.slo_verdict) != "pass":
                break
            passed.append(row)
        capacity = measured.capacity.get(name)
        assert (capacity is None) == (not passed)
        if passed:
            assert capacity.requests_per_s.value == passed[-1].rate_per_s
        if len(passed) == len(rows):
            assert capacity.requests_per_s.high is None


def test_a_variant_that_fails_at_the_lowest_rate_is_out(tmp_path):
    rates = dict.fromkeys(SPEED, (8.0, 16.0)) | {"int8<b>": (2.0, 2.83)}
    folder = write_search(tmp_path / "slow", rates)
    plan = read_result(folder)
    failed = [each.variant for each in plan.saturation if str(each.verdict) == "fail"]
    measured = read_runs([folder], "e2e-p95")
    assert set(measured.overload) == set(failed)


def test_stages_and_a_search_together(stages, search):
    both = read_runs([stages, search], "e2e-p95")
    assert both.levels == read_runs([stages], "e2e-p95").levels
    assert all("search" in each.source for each in both.capacity.values())


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ([{}, {}], "both have the load level light"),
        ([{}, {"target": {"model": "other", "variants": ["a", "b"]}}], "need one model"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, plans, message):
    folders = [
        write_run(tmp_path / str(i), campaign(**changes), keep=4)
        if "target" not in changes
        else _other(tmp_path / str(i))
        for i, changes in enumerate(plans)
    ]
    with pytest.raises(ConfigError, match=message):
        read_runs(folders, "e2e-p95")


def _other(folder):
    plan = campaign(target={"model": "other", "variants": ["bf16", "fp8"], "baseline": "bf16"})
    return write_run(folder, plan, keep=4)


def test_what_is_no_run_or_no_latency_is_refused(tmp_path, stages):
    with pytest.raises(ConfigError):
        read_runs([tmp_path], "e2e-p95")
    with pytest.raises(ConfigError, match="known: e2e-p50"):
        read_runs([stages], "e2e-p42")
    with pytest.raises(ConfigError, match="at least one run"):
        read_runs([], "e2e-p95")
