"""The search, against a simulated server whose capacity is known."""

import math
import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from loadtests.analyse.nouns import Probe, Share, Verdict
from loadtests.analyse.saturation import (
    Evidence,
    evidence_of,
    find_saturation,
    next_rate,
    probe,
    rounded,
    saturation_of,
)
from loadtests.analyse.search import SearchCells, stage_of
from loadtests.analyse.verdict import campaign_verdict
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Search, ValidityLimits
from loadtests.plan.cells import Planner
from loadtests.records.record import CellPlan, ErrorClass
from serve_app.domain.errors import ConfigError
from tests.fakes.load_cells import (
    MS,
    S,
    campaign_of,
    failed_of,
    plan_of,
    queue,
    record_of,
    run_of,
)

TARGET = 0.95
LIMITS = ValidityLimits()


def search_of(**changes):
    fields = {"duration_s": 60, "low_per_s": 1, "high_per_s": 64, "precision": 0.1}
    return Search.model_validate(fields | changes)


def campaign_for(variants=("a",), seed=0, slo_ms=500, **search):
    return campaign_of(
        variants,
        stages=None,
        search=search_of(**search).model_dump(mode="json"),
        slo={"e2e_ms": slo_ms, "attainment": TARGET},
        seed=seed,
        warmup_s=20,
    )


def capacity(service_per_s, slo_ms):
    """The rate at which the sojourn time of M/M/1, exponential with mu - lambda, meets the SLO."""
    return service_per_s - math.log(1 / (1 - TARGET)) / (slo_ms / 1000)


def serve(cell, service_per_s, rng, n_tokens=1):
    """Records of a cell at a single server, the last one over first."""
    done = queue([r.offset_ns for r in cell.requests], service_per_s, rng)
    return [
        record_of(
            i,
            cell=cell.index,
            variant=cell.variant,
            phase=r.phase,
            t_sched_ns=r.offset_ns,
            t_send_ns=r.offset_ns,
            t_first_ns=end,
            t_last_ns=end,
            t_end_ns=end,
            event_us=(0,),
            max_tokens=n_tokens,
            output_tokens=1,
        )
        for i, (r, end) in enumerate(zip(cell.requests, done, strict=True))
    ][::-1]


def run_search(campaign, speeds, seed=1):
    """Cells in the order in which they ran, each with its records; and the waves."""
    source, rng = SearchCells(Planner(campaign, 10)), random.Random(seed)
    ran, waves, done = [], [], ()
    while wave := source.next_cells(done):
        done = [(cell, serve(cell, speeds[cell.variant], rng)) for cell in wave]
        ran += done
        waves.append(wave)
        assert len(waves) < 100
    return ran, waves


def found_in(campaign, ran):
    cells = [
        WholeCell(CellPlan.of(cell, 0), (), tuple(sorted(records, key=lambda r: r.t_sched_ns)))
        for cell, records in ran
    ]
    return find_saturation(campaign, cells)


def test_answers_shorter_than_forced_say_nothing_of_capacity():
    campaign = campaign_for(high_per_s=32)
    ran, _ = run_search(campaign, {"a": 20})
    short = [(cell, serve(cell, 20, random.Random(1), n_tokens=2)) for cell, _ in ran]
    assert [each.verdict for each in found_in(campaign, ran)] != [Verdict.INVALID]
    (found,) = found_in(campaign, short)
    assert found.verdict is Verdict.INVALID
    assert "not of the forced length" in found.reason


def test_the_bracket_holds_the_true_capacity_in_most_runs():
    inside, near = 0, 0
    for seed in range(8):
        campaign = campaign_for(seed=seed, high_per_s=32)
        true = capacity(20, 500)
        ran, _ = run_search(campaign, {"a": 20}, seed)
        (found,) = found_in(campaign, ran)
        assert found.verdict is Verdict.PASS, found.reason
        low, high = found.highest_passed_per_s, found.lowest_failed_per_s
        assert low < high <= low * 1.1
        inside += low / 1.05 <= true <= high * 1.05
        near += low / 1.25 <= true <= high * 1.25
        if found.confirmed_pass_per_s and found.confirmed_fail_per_s:
            assert found.confirmed_pass_per_s <= low and found.confirmed_fail_per_s >= high
    assert inside >= 5 and near == 8  # of 60 seeds: 54 and 60


def test_each_variant_has_its_own_bracket_and_waves_hold_each_that_still_searches():
    campaign = campaign_for(("slow", "fast"), duration_s=30)
    ran, waves = run_search(campaign, {"slow": 12, "fast": 40})
    slow, fast = found_in(campaign, ran)
    assert slow.lowest_failed_per_s < fast.highest_passed_per_s
    for wave in waves:
        assert len({cell.variant for cell in wave}) == len(wave)
    assert [cell.index for cell, _ in ran] == list(range(len(ran)))
    assert {len(wave) for wave in waves[:3]} == {2}
    orders = {tuple(cell.variant for cell in wave) for wave in waves if len(wave) == 2}
    assert len(orders) == 2  # random, yet
    again, _ = run_search(campaign, {"slow": 12, "fast": 40})
    assert [c for c, _ in again] == [c for c, _ in ran]  # the same each time


def test_same_rate_and_attempt_same_requests_and_another_attempt_others():
    campaign = campaign_for(("a", "b"), duration_s=10, max_repeats=3)
    source = SearchCells(Planner(campaign, 10))
    first = source.next_cells(())
    assert first[0].requests == first[1].requests and first[0].stage == "1rps"
    # ten requests decide nothing, so the rate is tried again
    second = source.next_cells([(cell, serve(cell, 99, random.Random(1))) for cell in first])
    assert {(cell.stage, cell.block) for cell in second} == {("1rps", 1)}
    assert second[0].requests != first[0].requests
    third = source.next_cells([(cell, serve(cell, 99, random.Random(1))) for cell in second])
    fourth = source.next_cells([(cell, serve(cell, 99, random.Random(1))) for cell in third])
    assert {cell.stage for cell in fourth} == {"64rps"}  # by its point estimate


def of(rate, k, n, verdict, n_cells=1):
    share = Share(k=k, n=n, low=0.0, high=1.0)
    return Probe(rate_per_s=rate, n_cells=n_cells, attainment=share, verdict=verdict)


def probes(**verdicts):
    """`probes(r1="pass")`: one probe per rate."""
    k = {"pass": 100, "fail": 0, "invalid": 0}
    rates = {float(name[1:].replace("_", ".")): verdict for name, verdict in verdicts.items()}
    return {r: of(r, k[v], 100, Verdict(v)) for r, v in rates.items()}


def test_order_of_the_search():
    search = search_of()
    assert next_rate(search, {}, TARGET) == 1
    assert next_rate(search, probes(r1="fail"), TARGET) is None
    assert next_rate(search, probes(r1="invalid"), TARGET) is None
    assert next_rate(search, probes(r1="pass"), TARGET) == 64
    assert next_rate(search, probes(r1="pass", r64="pass"), TARGET) is None
    assert next_rate(search, probes(r1="pass", r64="fail"), TARGET) == 8
    assert next_rate(search, probes(r1="pass", r64="fail", r8="pass"), TARGET) == 22.63
    assert next_rate(search, probes(r1="pass", r10="pass", r11="fail", r64="fail"), TARGET) is None
    few = search_of(max_probes=2)
    assert next_rate(few, probes(r1="pass", r64="fail"), TARGET) is None
    fine = search_of(low_per_s=1, high_per_s=1.001, precision=1e-6)
    assert next_rate(fine, probes(r1="pass", r1_001="fail"), TARGET) is None  # no rate between


def test_an_inconclusive_rate_is_tried_again_and_then_decided_by_its_share():
    search = search_of(max_repeats=2)
    found = probes(r1="pass", r64="fail")
    again = found | {8.0: of(8, 96, 100, Verdict.INCONCLUSIVE)}
    assert next_rate(search, again, TARGET) == 8
    for k, want in ((95, rounded(math.sqrt(8 * 64))), (94, rounded(math.sqrt(8)))):
        decided = found | {8.0: of(8, k, 100, Verdict.INCONCLUSIVE, 2)}
        assert next_rate(search, decided, TARGET) == want


def test_what_a_search_says():
    search = search_of()

    def say(**verdicts):
        found = saturation_of("a", search, probes(**verdicts), TARGET)
        return found.highest_passed_per_s, found.lowest_failed_per_s, found.verdict, found.reason

    assert say(r1="pass", r10="pass", r11="fail") == (10, 11, "pass", "between 10/s and 11/s")
    assert say(r1="fail") == (None, 1, "fail", "even 1/s fails: lower search.low_per_s")
    held, failed, verdict, reason = say(r1="pass", r64="pass")
    assert (held, failed, verdict) == (64, None, "inconclusive") and "raise" in reason
    assert say(r1="pass", r64="fail")[2:] == (
        "inconclusive",
        "between 1/s and 64/s, stopped early: precision 10% asked",
    )
    assert say(r1="pass")[2] == "inconclusive" == say()[2]
    held, failed, verdict, reason = say(r1="pass", r8="invalid", r64="fail")
    assert verdict == "invalid" and "at 8/s the client fell short" in reason
    assert say(r1="pass", r8="fail", r10="pass")[:2] == (1, 8)  # a pass beyond a fail is luck


def test_ends_that_go_by_point_estimates_are_told():
    unsure = {
        1.0: of(1, 100, 100, Verdict.PASS),
        10.0: of(10, 96, 100, Verdict.INCONCLUSIVE, 3),
        11.0: of(11, 90, 100, Verdict.INCONCLUSIVE, 3),
        64.0: of(64, 0, 100, Verdict.FAIL),
    }
    found = saturation_of("a", search_of(), unsure, TARGET)
    assert (found.highest_passed_per_s, found.lowest_failed_per_s) == (10, 11)
    assert (found.confirmed_pass_per_s, found.confirmed_fail_per_s) == (1, 64)
    assert found.verdict is Verdict.PASS and found.reason == (
        "between 10/s and 11/s (not confirmed): the verdict of an end is by its point estimate"
    )


def test_a_fail_that_only_the_client_made_is_none_of_the_server():
    slo = campaign_for().slo
    on_time = [record_of(i, phase="measured") for i in range(200)]
    refused = [
        failed_of(i, ErrorClass.REFUSED_BY_CLIENT, phase="measured", t_send_ns=None)
        for i in range(200)
    ]
    broken = [failed_of(i, ErrorClass.HTTP_5XX, phase="measured") for i in range(200)]

    def verdict(records):
        cell = WholeCell(plan_of(n_measured=len(records)), (), tuple(records))
        return probe(5.0, [evidence_of(slo, LIMITS, cell)], TARGET, 3).verdict

    late = [
        record_of(
            i,
            phase="measured",
            t_sched_ns=0,
            t_send_ns=S,
            t_first_ns=S + 50 * MS,
            t_last_ns=S + 80 * MS,
        )
        for i in range(200)
    ]
    assert verdict(on_time) is Verdict.PASS
    assert verdict(late) is Verdict.INVALID
    assert verdict(refused) is Verdict.INVALID
    assert verdict(broken) is Verdict.FAIL
    assert verdict(broken[:100] + refused[:100]) is Verdict.FAIL


@pytest.mark.parametrize(
    ("changes", "is_clients"),
    [
        ({}, False),
        ({"cpu_s": 3.9}, True),
        ({"in_flight_ns": 1}, True),
        ({"clock_error_ns": 6 * MS}, True),
        ({"clock_error_ns": 4 * MS}, False),
    ],
)
def test_a_client_beyond_its_limits_may_have_made_a_fail(changes, is_clients):
    """CPU, Little's law and clock are asked: a pass is a pass, all else is invalid."""

    def verdict(records):
        cell = WholeCell(
            plan_of(n_measured=len(records)), (run_of(records, **changes),), tuple(records)
        )
        campaign = campaign_for(max_repeats=1)
        cell = replace(cell, plan=msgspec.structs.replace(cell.plan, rate_per_s=1.0))
        ((found,),) = (each.probes for each in find_saturation(campaign, [cell]))
        return found.verdict

    passing = [record_of(i, phase="measured") for i in range(200)]
    broken = [failed_of(i, ErrorClass.HTTP_5XX, phase="measured") for i in range(200)]
    assert verdict(passing) is Verdict.PASS
    assert verdict(broken) is (Verdict.INVALID if is_clients else Verdict.FAIL)
    unsure = verdict(passing[:50])
    assert unsure is (Verdict.INVALID if is_clients else Verdict.INCONCLUSIVE)


def test_one_cell_of_a_client_beyond_its_limits_spoils_the_rate_and_the_search():
    fair, spoiled = ([False] * 50, [False] * 50), ([False] * 50, [False] * 50, True)
    found = probe(5.0, [Evidence(*fair), Evidence(*spoiled)], TARGET, 3)
    assert found.verdict is Verdict.INVALID
    low = of(1, 100, 100, Verdict.PASS)
    said = saturation_of("a", search_of(), {1.0: low, 5.0: found}, TARGET)
    assert said.verdict is Verdict.INVALID and "the client fell short" in said.reason
    assert campaign_verdict([], [said], (), is_valid=True, is_partial=False) is Verdict.INVALID
    failed = saturation_of("b", search_of(), probes(r1="fail"), TARGET)
    both = campaign_verdict([], [failed, said], (), is_valid=True, is_partial=False)
    assert both is Verdict.INVALID


def test_more_looks_at_a_rate_need_more_of_each():
    one = Evidence([True] * 80, [True] * 80)
    alone, of_three = (probe(5.0, [one], TARGET, n) for n in (1, 3))
    assert (alone.verdict, of_three.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    want = scipy_stats.binomtest(80, 80).proportion_ci(1 - 0.05 / 3, "exact")
    assert of_three.attainment.low == pytest.approx(want.low)


def looks(rng, max_repeats, n=200):
    """The verdict of a rate exactly at the target, tried again until it is decided."""
    cells = []
    while True:
        cells.append(Evidence((rng.random(n) < TARGET).tolist(), [True] * n))
        found = probe(5.0, cells, TARGET, max_repeats)
        if found.verdict is not Verdict.INCONCLUSIVE or len(cells) == max_repeats:
            return found.verdict


def test_several_looks_err_as_rarely_as_one():
    """A fail of a rate at its target is an innocent server here: it counts as decided too."""
    rng = np.random.default_rng(3)
    wrong = [looks(rng, 3) is not Verdict.INCONCLUSIVE for _ in range(200)]
    assert np.mean(wrong) <= 0.06


def test_evidence_adds_up_over_the_cells_of_a_rate():
    one = Evidence([True] * 50, [True] * 50)
    assert probe(5.0, [one], TARGET, 3).verdict is Verdict.INCONCLUSIVE
    both = probe(5.0, [one, one], TARGET, 3)
    assert (both.verdict, both.n_cells, both.attainment.n) == (Verdict.PASS, 2, 100)


@pytest.mark.parametrize(
    ("rate", "name"), [(1.0, "1rps"), (12.5, "12.5rps"), (0.1234, "0.1234rps"), (1e4, "1e04rps")]
)
def test_names_of_probes(rate, name):
    for kind in ("poisson", "constant", "gamma"):
        stage = stage_of(search_of(kind=kind, burstiness=0.5), rate)
        assert (stage.kind, stage.name, stage.rate_per_s, stage.duration_s) == (
            kind,
            name,
            rate,
            60,
        )
    assert stage.burstiness == 0.5


def test_a_campaign_of_stages_has_nothing_to_search():
    with pytest.raises(ConfigError, match="no search"):
        SearchCells(Planner(campaign_of(), 10))
    assert find_saturation(campaign_of(), []) == ()
