"""The simulation: every request ends, and its times are what the curve says."""

import random
from itertools import pairwise

import pytest

from loadtests.campaign.stages import TraceFormat
from serve_app.domain.errors import ConfigError
from serve_app.simulate.curves import ServiceCurve
from serve_app.simulate.oracle import bound, hindsight
from serve_app.simulate.outcome import Limits, mean_rung, outcome, rank, turns
from serve_app.simulate.policies import Fixed, Overflow
from serve_app.simulate.run import Arrival, Fleet, play
from serve_app.simulate.trace import (
    SHAPES,
    Stage,
    burst,
    draw,
    parse_stage,
    parse_tokens,
    recorded,
)

SLOW = ServiceCurve("slow", ((1, 0.1), (2, 0.1)), prefill_s=0.05, max_batch=2)
FAST = ServiceCurve("fast", ((1, 0.01),), prefill_s=0.0, max_batch=4)
BOTH = Fleet({"slow": SLOW, "fast": FAST})
QUALITY = {"slow": 1.0, "fast": 0.9}
LIMITS = Limits(0.3, None)


def played(trace, policy, fleet=BOTH):
    return play(trace, fleet, lambda _: policy)


def poisson(rate, seconds, seed=1, tokens=(2, 8)):
    rng = random.Random(seed)
    at = sorted(rng.uniform(0, seconds) for _ in range(round(rate * seconds)))
    return tuple(Arrival(t, rng.randint(*tokens)) for t in at)


def test_one_request_takes_its_prompt_and_its_steps():
    (job,) = played([Arrival(1.0, 5)], Fixed("slow")).jobs
    assert job.ttft_s == pytest.approx(0.15)
    assert job.tpot_s == pytest.approx(0.1)
    assert job.end_s == pytest.approx(1.0 + 0.15 + 4 * 0.1)


def test_who_comes_during_a_step_joins_the_next_and_who_finds_no_place_waits_for_one():
    trace = [Arrival(0.0, 3), Arrival(0.01, 3), Arrival(0.02, 3)]
    one, two, three = played(trace, Fixed("slow")).jobs
    assert one.first_s == pytest.approx(0.15)
    assert two.first_s == pytest.approx(0.30)  # its step begins when the first one's is over
    assert one.end_s == pytest.approx(0.40)
    assert three.first_s == pytest.approx(0.55)  # a place is free at 0.40
    assert one.tpot_s == pytest.approx(0.125)  # the others' prompts are in its way


def test_one_token_has_no_tpot():
    (job,) = played([Arrival(0.0, 1)], Fixed("slow")).jobs
    assert (job.tpot_s, job.end_s) == (None, job.first_s)
    assert not Limits(None, 0.0001).is_missed(job)


@pytest.mark.parametrize("policy", [Fixed("fast"), Overflow(["slow", "fast"], [2])])
def test_every_request_ends_in_order_of_time_and_with_all_its_tokens(policy):
    for job in played(poisson(20, 20), policy).jobs:
        assert job.arrived_s < job.first_s <= job.end_s
        assert job.made == job.tokens


def test_replicas_share_the_requests_and_one_device_is_shared_by_all():
    trace = poisson(4, 60)
    alone = outcome("", played(trace, Fixed("slow")), LIMITS, QUALITY)
    two = Fleet(BOTH.curves, {"slow": 2})
    doubled = outcome("", played(trace, Fixed("slow"), two), LIMITS, QUALITY)
    assert doubled.ttft_p95_s < alone.ttft_p95_s
    shared = Fleet(BOTH.curves, {"slow": 2}, shares_device=True)
    both = outcome("", played(trace, Fixed("slow"), shared), LIMITS, QUALITY)
    assert both.ttft_p95_s > doubled.ttft_p95_s


def test_an_overflow_goes_down_only_when_the_best_is_at_its_limit():
    jobs = played([Arrival(0.0, 9)] * 5, Overflow(["slow", "fast"], [2])).jobs
    assert [job.variant for job in jobs] == ["slow", "slow", "fast", "fast", "fast"]


@pytest.mark.parametrize(
    ("depths", "n"),
    [([0, 0, 0], 0), ([0, 1, 2, 2, 1, 0], 1), ([0, 1, 0.9, 1, 0], 2), ([2, 1, 0], 0), ([], 0)],
)
def test_a_turn_is_when_share_that_went_down_begins_to_come_back(depths, n):
    assert turns(depths) == n


def test_the_mean_rung_counts_from_the_best():
    assert mean_rung({"a": 5000, "b": 2500, "c": 2500}) == 0.75


def test_quality_is_that_of_who_served_and_violations_are_counted():
    trace = [Arrival(0.0, 9)] * 4
    limits = Limits(0.35, None)
    found = outcome("x", played(trace, Overflow(["slow", "fast"], [3])), limits, QUALITY)
    assert found.served == {"slow": 3, "fast": 1}
    assert found.quality == pytest.approx((3 + 0.9) / 4)
    assert found.n_violations == 1  # the third waits for a place
    assert rank([], 0.95) is None


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_exceeds_the_bound_and_hindsight_is_a_policy(seed):
    trace = poisson(14, 40, seed, tokens=(5, 5))
    rungs = ("slow", "fast")
    best = hindsight(trace, BOTH, rungs, LIMITS, QUALITY, most_violations=20)
    assert best is not None
    assert best.n_violations <= 20
    for limit in (1, 2, 3, 5):
        tried = outcome("", played(trace, Overflow(rungs, [limit])), LIMITS, QUALITY)
        most = bound(trace, BOTH, rungs, LIMITS, QUALITY, tried.n_violations)
        assert tried.quality <= most
        assert tried.n_violations > 20 or tried.quality <= best.quality + 0.02


def test_nothing_is_best_where_nothing_keeps_the_slo():
    trace = poisson(400, 5)
    assert hindsight(trace, BOTH, ("slow", "fast"), LIMITS, QUALITY, 0) is None


def test_stages_have_their_rates_and_one_seed_one_trace():
    stages = [parse_stage("2x30"), parse_stage("0-10x20")]
    assert stages == [Stage(2, 2, 30), Stage(0, 10, 20)]
    trace = draw(stages, parse_tokens("3:7"), seed=5)
    assert (
        trace == draw(stages, parse_tokens("3:7"), seed=5) != draw(stages, parse_tokens("3:7"), 6)
    )
    assert len(trace) == 60 + 100
    assert all(before.at_s <= after.at_s for before, after in pairwise(trace))
    assert {each.tokens for each in trace} == {3, 4, 5, 6, 7}


@pytest.mark.parametrize("text", ["", "x", "5", "5x", "x5", "5x0", "-5x3", "1-2-3x4", "5x3s"])
def test_other_stages_are_refused(text):
    with pytest.raises(ConfigError, match="is no stage: write RATExSECONDS"):
        parse_stage(text)


@pytest.mark.parametrize("text", ["", "0", "8:4", "a:b", "4:", "1.5"])
def test_other_lengths_are_refused(text):
    if text == "4:":
        assert parse_tokens(text) == parse_tokens("4")
        return
    with pytest.raises(ConfigError, match="is no range of tokens"):
        parse_tokens(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_burst_is_calm_before_and_after_and_over_the_capacity_between(shape):
    stages = burst(shape, 10.0, 2.0, 0.5, 60.0)
    assert stages[0] == Stage(5.0, 5.0, 30.0)
    assert stages[-1] == Stage(5.0, 5.0, 60.0)
    assert max(stage.to_per_s for stage in stages) == 20.0
    assert sum(stage.from_per_s == stage.to_per_s == 20.0 for stage in stages) == (
        2 if shape == "two" else 1
    )


def test_an_unknown_shape_and_a_trace_without_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="known: square, ramp, two"):
        burst("sine", 1, 2, 0.5, 60)
    with pytest.raises(ConfigError, match="no requests"):
        draw([Stage(0, 0, 10)], parse_tokens("4"), 1)
    file = tmp_path / "trace.csv"
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:17:{s:02}.0,10,{tokens}" for s, tokens in ((3, 5), (5, 0), (13, 7))]
    file.write_text("\n".join(lines))
    assert recorded(TraceFormat.AZURE, file, speedup=2.0) == (Arrival(0.0, 5), Arrival(5.0, 7))
    assert len(recorded(TraceFormat.AZURE, file, most_s=9.0)) == 1
    file.write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(ConfigError, match="no request of the trace"):
        recorded(TraceFormat.AZURE, file)
