"""Verdicts: what it takes to promote, to roll back, and to say that nothing was decided."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from serve_app.rollout.guards import Guard, Kind, Property
from serve_app.rollout.judge import (
    RolloutVerdict,
    Standing,
    begin_step,
    is_within_margin,
    log_against,
    looks_to_break,
    observe,
    rule,
)
from serve_app.rollout.observations import (
    Answer,
    ArmWindow,
    Look,
    Pair,
    Pairs,
    Window,
    quantile_edge,
)
from serve_app.rollout.plan import AdvanceOn, RolloutPlan, Step

ERRORS = Guard("errors", Kind.SHARE, 0.0, 0.05)
TAIL = Guard("tail", Kind.SHARE, 0.0, 0.05, Property.SLOW, "ttft", quantile=0.9)
MEAN = Guard("mean", Kind.MEAN, 0.0, math.log(1.2), Property.SLOW, "ttft")
LIMIT = Guard("limit", Kind.LIMIT, 0.1, 0.1, Property.SLOW, "ttft", limit_s=0.5)
STEP = Step(1000, AdvanceOn.NON_INFERIOR, 50, 2000, 10.0, 100.0)


def plan_of(*guards: Guard, step: Step = STEP, n_steps: int = 1, **changes) -> RolloutPlan:
    return RolloutPlan((step,) * n_steps, guards, 0.05, calibrate_on=50, **changes)


def pairs(n: int, slow: float = 1.0, errors: int = 0, seed: int = 0) -> Look:
    """n pairs, the candidate `slow` times as slow, its first `errors` answers failed."""
    rng = np.random.default_rng(seed)
    times = 0.2 * np.exp(0.3 * rng.normal(size=(n, 2)))
    found = [
        Pair(
            baseline=Answer(ok=True, ttft_s=float(base)),
            candidate=Answer(ok=i >= errors, ttft_s=float(cand) * slow),
        )
        for i, (base, cand) in enumerate(times)
    ]
    return Look(pairs=Pairs.of(found))


def after(plan: RolloutPlan, *looks: Look) -> Standing:
    standing = begin_step(plan, Standing())
    for look in looks:
        standing = observe(plan, standing, look)
    return standing


def test_no_evidence_is_no_verdict_and_then_inconclusive():
    plan = plan_of(ERRORS)
    standing = after(plan)
    assert rule(plan, standing, 50).verdict is RolloutVerdict.CONTINUE
    ruling = rule(plan, standing, 100)
    assert ruling.verdict is RolloutVerdict.INCONCLUSIVE
    assert "0 requests of the candidate, need 50" in ruling.reason


def test_a_promotion_needs_evidence_of_each_guard_time_and_requests():
    plan = plan_of(ERRORS, MEAN)
    standing = after(plan, *[pairs(150, seed=seed) for seed in range(4)])
    assert rule(plan, standing, 20).verdict is RolloutVerdict.PROMOTE
    assert rule(plan, standing, 5).verdict is RolloutVerdict.CONTINUE
    greedy = replace(plan, steps=(replace(STEP, min_requests=601),))
    assert rule(greedy, standing, 20).verdict is RolloutVerdict.CONTINUE


def test_a_guard_without_evidence_keeps_the_baseline():
    tpot = replace(MEAN, name="tpot", latency="tpot")
    plan = plan_of(ERRORS, tpot)
    ruling = rule(plan, after(plan, pairs(2000)), 20)
    assert ruling.verdict is RolloutVerdict.INCONCLUSIVE
    assert "no evidence at all of tpot" in ruling.reason


def test_to_fail_like_a_baseline_that_always_fails_is_no_merit():
    plan = plan_of(ERRORS)
    failed = [Pair(baseline=Answer(ok=False), candidate=Answer(ok=False))] * 200
    standing = after(plan, *[Look(pairs=Pairs.of(failed))] * 5)
    assert rule(plan, standing, 20).verdict is RolloutVerdict.CONTINUE
    ruling = rule(plan, standing, 100)
    assert ruling.verdict is RolloutVerdict.INCONCLUSIVE


def test_a_slower_candidate_is_rolled_back_and_the_guard_named():
    plan = plan_of(ERRORS, MEAN)
    ruling = rule(plan, after(plan, pairs(300, slow=1.5)), 1)
    assert ruling.verdict is RolloutVerdict.ROLLBACK
    assert ruling.guard == "mean"
    assert "the candidate is worse (+5" in ruling.reason


def test_a_rollback_does_not_wait_for_the_least_time_or_number():
    plan = plan_of(ERRORS)
    looks = [pairs(10, errors=10)] * 4
    assert rule(plan, after(plan, *looks), 0).verdict is RolloutVerdict.ROLLBACK


def test_worse_than_the_baseline_but_within_what_is_tolerated_is_no_ground_for_a_rollback():
    tolerant = replace(MEAN, tolerated=math.log(1.15), margin=math.log(1.3))
    plan = plan_of(tolerant)
    standing = after(plan, pairs(1500, slow=1.08))
    assert rule(plan, standing, 20).verdict is RolloutVerdict.PROMOTE
    assert log_against(plan, standing) < 0


def test_evidence_that_ends_undecided_is_inconclusive():
    plan = plan_of(ERRORS, MEAN)
    ruling = rule(plan, after(plan, pairs(60)), 20, exhausted=True)
    assert ruling.verdict is RolloutVerdict.INCONCLUSIVE
    assert "no more evidence" in ruling.reason


def test_a_step_that_looks_for_breaches_alone_shows_nothing_and_asks_for_nothing():
    plan = plan_of(ERRORS, MEAN, step=replace(STEP, advance_on=AdvanceOn.NO_BREACH))
    assert rule(plan, after(plan, pairs(60)), 20).verdict is RolloutVerdict.CONTINUE
    standing = after(plan, *[pairs(15, seed=seed) for seed in range(looks_to_break(plan))])
    assert rule(plan, standing, 20).verdict is RolloutVerdict.PROMOTE
    assert not is_within_margin(plan, standing, ERRORS)
    broken = after(plan, *[pairs(15, errors=15)] * looks_to_break(plan))
    assert rule(plan, broken, 20).verdict is RolloutVerdict.ROLLBACK


def test_each_step_needs_evidence_of_its_own():
    plan = plan_of(ERRORS, MEAN, n_steps=2)
    standing = begin_step(plan, after(plan, pairs(1000)))
    assert standing.n_candidate == 0
    assert not is_within_margin(plan, standing, MEAN)
    standing = observe(plan, standing, pairs(20, seed=1))
    assert rule(plan, standing, 20).verdict is RolloutVerdict.CONTINUE


def test_what_goes_bad_in_a_later_step_is_found_there_despite_a_good_past():
    plan = plan_of(ERRORS, MEAN, n_steps=3)
    good = begin_step(plan, after(plan, pairs(3000)))
    standing = observe(plan, good, pairs(250, slow=1.4, seed=3))
    assert rule(plan, standing, 1).verdict is RolloutVerdict.ROLLBACK


def test_evidence_against_it_is_carried_from_step_to_step():
    plan = plan_of(MEAN, n_steps=2, step=replace(STEP, advance_on=AdvanceOn.NO_BREACH))
    first = after(plan, *[pairs(8, slow=1.15, seed=seed) for seed in range(7)])
    assert rule(plan, first, 20).verdict is RolloutVerdict.PROMOTE
    second = observe(plan, begin_step(plan, first), pairs(60, slow=1.15, seed=9))
    alone = observe(plan, begin_step(plan, Standing()), pairs(60, slow=1.15, seed=9))
    assert log_against(plan, second) > log_against(plan, alone)


def test_the_budget_of_errors_is_one_for_all_guards():
    alone = plan_of(ERRORS)
    among_many = plan_of(ERRORS, *(replace(ERRORS, name=f"e{i}", tolerated=0.9) for i in range(9)))
    look = pairs(40, errors=6)
    against = log_against(among_many, after(among_many, look))
    assert against < log_against(alone, after(alone, look))
    assert math.exp(against) > math.exp(log_against(alone, after(alone, look))) / 10


def test_an_answer_that_failed_is_slow_too():
    plan = plan_of(TAIL)
    standing = after(plan, pairs(100), pairs(100, errors=60, seed=2))
    assert standing.guards["tail"].candidate_sum >= 60


def test_tails_wait_for_a_threshold_and_are_never_judged_by_one_of_the_same_look():
    plan = plan_of(TAIL)
    first = after(plan, pairs(200))
    assert first.guards["tail"].n == 0
    assert first.thresholds_s["tail"] == pytest.approx(0.2 * math.exp(0.3 * 1.2816), rel=0.1)
    second = observe(plan, first, pairs(100, seed=4))
    assert second.guards["tail"].n == 100


def test_a_limit_is_of_the_candidate_alone():
    plan = plan_of(LIMIT)
    slow = after(plan, pairs(200, slow=3.0))
    assert rule(plan, slow, 1).verdict is RolloutVerdict.ROLLBACK
    assert rule(plan, after(plan, pairs(400)), 20).verdict is RolloutVerdict.PROMOTE


def window(n: int, slow: int, of: int, errors: int = 0) -> Window:
    """n requests of the baseline, of the candidate n / 4 of which `slow` in `of` are slow."""
    fast_edge, slow_edge = 0.25, math.inf

    def arm(requests: int, n_slow: int, n_errors: int) -> ArmWindow:
        latencies = {"ttft": {fast_edge: requests - n_slow, slow_edge: n_slow}}
        return ArmWindow(requests=requests, errors=n_errors, latencies=latencies)

    return Window(baseline=arm(n, n // 20, 0), candidate=arm(n // 4, n // 4 * slow // of, errors))


def test_windows_of_unequal_arms_are_judged_by_their_shares():
    plan = plan_of(ERRORS, replace(TAIL, quantile=0.95))
    even = after(plan, *[Look(windows=(window(400, 1, 20),))] * 20)
    assert rule(plan, even, 20).verdict is RolloutVerdict.PROMOTE
    worse = after(plan, *[Look(windows=(window(400, 1, 4),))] * 20)
    ruling = rule(plan, worse, 20)
    assert (ruling.verdict, ruling.guard) == (RolloutVerdict.ROLLBACK, "tail")
    failing = after(plan, *[Look(windows=(window(400, 1, 20, errors=10),))] * 20)
    assert rule(plan, failing, 20).guard == "errors"


def test_stalls_that_hit_whole_windows_count_for_little():
    # 10 stalled windows of each arm: the same share of slow requests, in clumps
    plan = plan_of(replace(TAIL, quantile=0.95), step=replace(STEP, max_requests=10**6))
    rng = np.random.default_rng(0)
    looks = []
    for _ in range(60):
        counts = [100 if rng.random() < 0.15 else 2 for _ in range(2)]
        arms = [
            ArmWindow(requests=100, errors=0, latencies={"ttft": {0.25: 100 - k, math.inf: k}})
            for k in counts
        ]
        looks.append(Look(windows=(Window(baseline=arms[0], candidate=arms[1]),)))
    standing = after(plan, *looks)
    assert standing.guards["tail"].dependence(1.0) > 20
    assert rule(plan, standing, 1).verdict is not RolloutVerdict.ROLLBACK


def test_a_standing_is_the_same_after_it_was_written_down():
    plan = plan_of(ERRORS, TAIL, MEAN, LIMIT, n_steps=2)
    looks = [pairs(120, seed=5), Look(windows=(window(400, 1, 20),)), pairs(130, seed=6)]
    through = standing = begin_step(plan, Standing())
    for look in looks:
        standing = observe(plan, standing, look)
        written = msgspec.json.encode(observe(plan, through, look))
        through = msgspec.json.decode(written, type=Standing)
    assert through == standing


def test_a_quantile_beyond_the_last_bucket_is_the_last_edge_there_is():
    assert quantile_edge({0.1: 5, math.inf: 95}, 0.99) == 0.1
    assert quantile_edge({math.inf: 3}, 0.5) is None
    assert quantile_edge({}, 0.5) is None
    assert quantile_edge({0.1: 98, 0.2: 1, 0.4: 1}, 0.99) == 0.2
