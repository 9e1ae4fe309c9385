"""Two runs against each other."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from loadtests.analyse.compare_runs import ONE_START, RunData, compare_runs, requests_digest
from loadtests.analyse.nouns import Change, Saturation, Verdict
from loadtests.analyse.ratios import Metric, blocks_of, find, judge
from loadtests.analyse.share_changes import pooled
from loadtests.analyse.significance import holm
from loadtests.records.manifest import SCHEMA_VERSION, Manifest, VariantFacts
from tests.fakes.load_cells import campaign_of, cell_of

CAMPAIGN = campaign_of(("a", "b"), same_within=0.05)


def manifest_of(campaign=CAMPAIGN, **changes):
    fields = {
        "schema_version": SCHEMA_VERSION,
        "started_at": "2026-11-21T10:00:00+00:00",
        "host": {},
        "campaign": campaign.model_dump(mode="json"),
        "inputs": {"/somewhere/prompts.jsonl": "abc"},
    }
    return Manifest(**(fields | changes))


def run_data(scale=1.0, n_blocks=5, campaign=CAMPAIGN, seed=0, failed=0, n=400, **changes):
    """TTFTs that are far from block to block, and the same but for `scale` and 1 % in all runs."""
    jitter = np.random.default_rng(seed)
    cells = []
    for block in range(n_blocks):
        ttfts = np.random.default_rng(block).lognormal(2 + 0.4 * block, 0.3, n)
        for variant in ("a", "b"):
            values = (ttfts * scale * jitter.lognormal(0, 0.01)).tolist()
            cell = [None] * failed + values[failed:]
            cells.append(cell_of(cell, index=len(cells), variant=variant, block=block))
    fields = {
        "manifest": manifest_of(campaign),
        "campaign": campaign,
        "cells": tuple(cells),
        "saturation": (),
        "is_valid": True,
        "is_partial": False,
    }
    return RunData(**(fields | changes))


def change_of(result, metric, p=None, variant="b"):
    return next(c for c in result.changes if (c.metric, c.p, c.variant) == (metric, p, variant))


def test_a_run_against_its_like_is_the_same_and_passes():
    result = compare_runs(run_data(seed=1), run_data(seed=2))
    assert {each.change for each in result.changes} == {Change.SAME}
    assert len(result.changes) == 2 * (8 + 2)
    assert result.paired_stages == ("s",) and result.notes == (ONE_START,)
    assert result.exit_code == 0
    assert [each.variant for each in result.changes] == ["a"] * 10 + ["b"] * 10


def test_a_slower_run_is_worse_and_a_faster_one_better():
    slow = compare_runs(run_data(seed=1), run_data(1.2, seed=2))
    assert change_of(slow, "ttft_user_ms", 0.95).change is Change.WORSE
    assert change_of(slow, "ttft_user_ms", 0.95).effect == pytest.approx(1.2, rel=0.03)
    assert change_of(slow, "ttft_user_ms", 0.99).change is Change.WORSE
    assert slow.exit_code == 1
    lax = campaign_of(("a", "b"), slo={"ttft_ms": 1e6})
    fast = compare_runs(run_data(1.2, seed=1, campaign=lax), run_data(seed=2, campaign=lax))
    assert change_of(fast, "ttft_user_ms", 0.5).change is Change.BETTER
    assert fast.exit_code == 0


def test_other_requests_are_not_paired_and_see_less():
    free = campaign_of(("a", "b"), slo=None)
    a, b = run_data(seed=1, campaign=free), run_data(1.2, seed=2, campaign=free)
    other = manifest_of(campaign_of(("a", "b"), slo=None, seed=9))
    paired = compare_runs(a, b)
    apart = compare_runs(a, replace(b, manifest=other))
    assert apart.paired_stages == () and "other requests in A than in B at s" in apart.notes[0]
    for p in (0.5, 0.95):
        one, two = (change_of(result, "ttft_user_ms", p) for result in (paired, apart))
        assert two.effect == pytest.approx(one.effect)
        assert two.high / two.low > 2 * one.high / one.low
        assert two.change is Change.INCONCLUSIVE
    assert apart.exit_code == 3


def test_what_may_still_be_worse_does_not_pass():
    good = run_data()
    thin = [
        cell_of([9.0] * (200 if i == 0 else 400), index=i, variant=each.plan.variant, block=i // 2)
        for i, each in enumerate(good.cells)
    ]
    result = compare_runs(replace(good, cells=tuple(thin)), replace(good, cells=tuple(thin[2:])))
    assert result.exit_code == 0  # the block that only one of them has does not count
    full = [cell_of([9.0] * 400, index=i, variant="ab"[i % 2], block=i // 2) for i in range(10)]
    for was, now, may_be_worse in ((full, thin, True), (thin, full, False)):
        result = compare_runs(replace(good, cells=tuple(was)), replace(good, cells=tuple(now)))
        tokens = change_of(result, "output_tokens_per_s", variant="a")
        assert tokens.change is Change.INCONCLUSIVE
        assert tokens.rules_out_worse is False  # the interval is wide to both sides
        assert (tokens.effect < 1) == may_be_worse
        assert result.exit_code == 3


def test_unlike_numbers_of_blocks():
    result = compare_runs(run_data(n_blocks=3), run_data(n_blocks=5))
    assert change_of(result, "tpot_ms", 0.5).n_blocks == (3, 3)
    lone = compare_runs(run_data(n_blocks=1), run_data(n_blocks=5))
    assert change_of(lone, "tpot_ms", 0.5).reason == "need 2 blocks or more, have 1"
    assert lone.exit_code == 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"is_valid": False}, 3),
        ({"is_partial": True}, 3),
        ({"cells": ()}, 3),
    ],
)
def test_what_is_not_sound_never_passes(changes, code):
    result = compare_runs(run_data(seed=1), run_data(seed=2, **changes))
    assert result.exit_code == code and result.notes


def test_a_partial_run_can_be_worse_and_an_invalid_one_says_nothing():
    slow = {"scale": 1.2, "seed": 2}
    assert compare_runs(run_data(seed=1), run_data(is_partial=True, **slow)).exit_code == 1
    assert compare_runs(run_data(seed=1), run_data(is_valid=False, **slow)).exit_code == 3


def test_more_errors_and_less_attainment_are_worse():
    campaign = campaign_of(("a", "b"), slo={"ttft_ms": 1e6})
    good, bad = (run_data(campaign=campaign, failed=n) for n in (0, 16))
    result = compare_runs(good, bad)
    errors, met = change_of(result, "error_rate"), change_of(result, "attainment")
    assert errors.values == (0, 0.04) and errors.effect == pytest.approx(0.04)
    assert met.effect == pytest.approx(-0.04)
    assert errors.change is Change.WORSE is met.change
    assert result.exit_code == 1
    back = compare_runs(bad, good)
    assert {change_of(back, each).change for each in ("error_rate", "attainment")} == {"better"}
    tail = change_of(back, "ttft_user_ms", 0.99)  # infinite in all 5 blocks of A: too few to tell
    assert tail.change is Change.INCONCLUSIVE and tail.reason.endswith("need 6 blocks or more")
    assert back.exit_code == 3


def shares_of(rates, n=400, first=0):
    """A cell of variant `a` per block, with these shares of failures."""
    return tuple(
        cell_of([None if i < round(n * r) else 9.0 for i in range(n)], index=first + k, block=k)
        for k, r in enumerate(rates)
    )


def test_shares_of_other_requests_go_by_welch():
    one = campaign_of(slo=None)
    other = manifest_of(campaign_of(slo=None, seed=9))
    a, b = (0.01, 0.02, 0.04), (0.10, 0.11, 0.14, 0.11)
    runs = [
        run_data(campaign=one, cells=shares_of(rates), manifest=manifest)
        for rates, manifest in ((a, manifest_of(one)), (b, other))
    ]
    errors = change_of(compare_runs(*runs), "error_rate", variant="a")
    want = scipy_stats.ttest_ind(b, a, equal_var=False)
    interval = want.confidence_interval(0.95)
    assert errors.n_blocks == (3, 4) and errors.p_value == pytest.approx(want.pvalue)
    assert (errors.low, errors.high) == pytest.approx((interval.low, interval.high))


def test_one_block_decides_no_share_and_tells_fishers_p():
    one = campaign_of(slo=None)
    runs = [run_data(campaign=one, cells=shares_of([rate])) for rate in (0.01, 0.2)]
    result = compare_runs(*runs)
    errors = change_of(result, "error_rate", variant="a")
    assert (errors.change, errors.rules_out_worse) == (Change.INCONCLUSIVE, False)
    assert errors.p_value is None and errors.reason.startswith("need 2 blocks or more, have 1 (p ")
    assert result.exit_code == 3


def test_what_the_counts_say_is_newcombes_and_fishers():
    found = pooled([(12, 250), (8, 150)], [(8, 400)])
    first, second = (scipy_stats.binomtest(k, 400).proportion_ci(0.95, "exact") for k in (20, 8))
    assert found.value == pytest.approx(-0.03)
    assert found.low == pytest.approx(-0.03 - math.hypot(0.02 - second.low, first.high - 0.05))
    assert found.high == pytest.approx(-0.03 + math.hypot(second.high - 0.02, 0.05 - first.low))
    assert found.p_value == pytest.approx(scipy_stats.fisher_exact([[20, 380], [8, 392]]).pvalue)


def test_shares_of_few_requests_leave_room_for_worse():
    few = shares_of([0, 0, 0], 50)
    result = compare_runs(run_data(cells=few), run_data(cells=few))
    for name in ("error_rate", "attainment"):
        each = change_of(result, name, variant="a")
        assert (each.change, each.rules_out_worse) == (Change.INCONCLUSIVE, False)


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("sd", [0.0, 0.02, 0.05])
def test_blocks_that_differ_are_no_change_of_shares(sd, is_paired):
    """A/A runs of 5 blocks of 400, 10 % failures, blocks apart by `sd`.

    Of 2000 single comparisons 2.4, 4.2, 4.8 % were findings (paired; 2.5, 4.7, 5.2 % not paired),
    and 5, 24, 56 % by Fisher's test of the pooled counts. The bound leaves room for luck.
    """
    rng = np.random.default_rng(8)
    metrics, n_found = (Metric("error_rate", None), Metric("attainment", None)), 0
    for _ in range(40):
        rates = [np.clip(rng.normal(0.1, sd, 5), 0, 1) for _ in range(2)]
        a, b = (shares_of(rng.binomial(400, r) / 400) for r in rates)
        sides = [(m, *(blocks_of(m, cells, CAMPAIGN.slo) for cells in (a, b))) for m in metrics]
        found = [find(*side, 0.05, is_paired=is_paired) for side in sides]
        adjusted = holm([each.effect.p_value for each in found])
        n_found += any(
            judge(m, each, p, 0.05)[0] in (Change.BETTER, Change.WORSE)
            for m, each, p in zip(metrics, found, adjusted, strict=True)
        )
    assert n_found <= 4


def test_attainment_is_compared_under_one_slo_only():
    other = campaign_of(("a", "b"), slo={"ttft_ms": 61})
    result = compare_runs(run_data(), run_data(campaign=other))
    assert "attainment" not in {each.metric for each in result.changes}
    assert "different SLOs" in result.notes[0]


def test_what_is_in_one_run_only_is_told_and_does_not_pass():
    good = run_data()
    lacking = replace(good, cells=tuple(c for c in good.cells if c.plan.variant == "a"))
    for runs, note in (((good, lacking), "only in A: s, b"), ((lacking, good), "only in B: s, b")):
        result = compare_runs(*runs)
        assert note in result.notes and result.exit_code == 3
        assert {each.change for each in result.changes} == {Change.SAME}
    slow = run_data(1.2, seed=2)
    slow = replace(slow, cells=tuple(c for c in slow.cells if c.plan.variant == "a"))
    assert compare_runs(good, slow).exit_code == 1


STAGE = {"name": "s", "kind": "constant", "rate_per_s": 10, "duration_s": 2}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"stages": [STAGE | {"rate_per_s": 5}]}, "stage"),
        ({"workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 5]}}, "workload"),
        ({"timeout_s": 5}, "timeout_s"),
        ({"stages": [STAGE | {"gate": False}]}, None),
        ({"seed": 3}, None),
    ],
)
def test_another_load_has_no_verdict(changes, what):
    fields = {"same_within": 0.05} | changes
    other = campaign_of(("a", "b"), **fields)
    result = compare_runs(run_data(), run_data(1.5, campaign=other))
    ttft = change_of(result, "ttft_user_ms", 0.5)
    if what is None:
        assert ttft.effect is not None and not any("no verdict" in n for n in result.notes)
        return
    assert {each.change for each in result.changes} == {Change.INCONCLUSIVE}
    assert ttft.effect is None and ttft.reason == f"another load in A than in B: {what}"
    assert f"s: another load in A than in B ({what}): no verdict" in result.notes
    assert result.exit_code == 3


def test_other_prompt_files_are_another_load():
    b = run_data(manifest=manifest_of(inputs={"/p": "other"}))
    assert compare_runs(run_data(), b).changes[0].reason.endswith("input files")


def test_a_stage_with_another_load_hides_nothing_of_the_others():
    two = [STAGE | {"name": "t"}, STAGE]
    before, after = (
        campaign_of(("a", "b"), stages=[two[0] | {"rate_per_s": r}, two[1]]) for r in (5, 6)
    )

    def both(campaign, scale):
        run = run_data(scale, campaign=campaign)
        twin = [
            replace(c, plan=msgspec.structs.replace(c.plan, stage="t", index=100 + c.plan.index))
            for c in run.cells
        ]
        return replace(run, cells=(*run.cells, *twin))

    result = compare_runs(both(before, 1), both(after, 1.3))
    changes = {(c.stage, c.change) for c in result.changes if c.metric == "ttft_user_ms"}
    assert changes == {("s", Change.WORSE), ("t", Change.INCONCLUSIVE)}
    assert result.exit_code == 1


def test_notes_tell_how_hosts_and_engines_differ():
    facts = {"a": VariantFacts(replicas=1, facts={"engine": "vLLM 1", "kernel": "x"})}
    was = manifest_of(host={"cpus": "2", "machine": "m"}, variants=facts)
    more = {"a": VariantFacts(replicas=2, facts={"engine": "vLLM 2", "kernel": "x"})}
    now = manifest_of(host={"cpus": "4", "machine": "m"}, variants=more)
    result = compare_runs(run_data(seed=1, manifest=was), run_data(seed=2, manifest=now))
    assert result.notes == (
        ONE_START,
        "client's cpus: 2 in A, 4 in B",
        "a: replicas: 1 in A, 2 in B",
        "a: engine: vLLM 1 in A, vLLM 2 in B",
    )
    assert result.exit_code == 0


def test_p99_is_left_out_with_a_note_where_a_cell_is_too_small():
    result = compare_runs(run_data(), run_data(n=90))
    assert 0.99 not in {each.p for each in result.changes}
    notes = [note for note in result.notes if "P99" in note]
    assert notes == ["s: P99 is not compared: need n >= 100, have 90 in a cell"]


def test_digest_is_of_what_decides_the_requests():
    digest = requests_digest(manifest_of(), "s")
    same = campaign_of(("b",), blocks=9, same_within=0.5, slo={"ttft_ms": 1})
    moved = manifest_of(same, inputs={"/elsewhere/p.jsonl": "abc"}, n_workers=4)
    assert requests_digest(moved, "s") == digest
    stage = {"name": "s", "kind": "constant", "rate_per_s": 10, "duration_s": 2}
    for change in (
        {"seed": 1},
        {"warmup_s": 2},
        {"cooldown_s": 2},
        {"stages": [stage | {"rate_per_s": 11}]},
        {"stages": [stage | {"kind": "poisson"}]},
        {"workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 5]}},
    ):
        assert requests_digest(manifest_of(campaign_of(**change)), "s") != digest, change
    assert requests_digest(manifest_of(inputs={"/p": "other"}), "s") != digest
    assert requests_digest(manifest_of(tokens_per_word=1.2), "s") != digest
    ungated = campaign_of(stages=[stage | {"gate": False}])
    assert requests_digest(manifest_of(ungated), "s") == digest


def searched(held, failed, confirmed=True, verdict=Verdict.PASS):
    return Saturation(
        variant="a",
        highest_passed_per_s=held,
        lowest_failed_per_s=failed,
        confirmed_pass_per_s=held if confirmed else None,
        confirmed_fail_per_s=failed if confirmed else None,
        probes=(),
        verdict=verdict,
        reason="the client fell short" if verdict is Verdict.INVALID else "",
    )


def search_of(found, **changes):
    search = {"duration_s": 2, "low_per_s": 2, "high_per_s": 20, "precision": 0.1}
    search |= changes.pop("search", {})
    campaign = campaign_of(("a", "b"), stages=None, search=search, **changes)
    return run_data(campaign=campaign, cells=(), saturation=found)


@pytest.mark.parametrize(
    ("was", "now", "change", "code"),
    [
        ((10, 11), (10, 11), "same", 0),
        ((10, 11), (12, 13), "better", 0),
        ((10, 11), (8, 9), "worse", 1),
        ((10, 10.3), (10.4, 11.5), "inconclusive", 0),  # not by more than the precision
        ((10, 11), (10.5, 11.5), "inconclusive", 0),
        ((10, 11), (9.5, 10.5), "inconclusive", 3),
        ((10, None), (10, 11), "inconclusive", 3),
        ((10, 11), (None, 1), "inconclusive", 3),
    ],
)
def test_capacities_are_compared_by_their_brackets(was, now, change, code):
    result = compare_runs(*(search_of((searched(*each),)) for each in (was, now)))
    assert [each.change for each in result.changes] == [change]
    assert result.exit_code == code


@pytest.mark.parametrize("now", [(5, 6), (20, 21)])
@pytest.mark.parametrize("bad", [{"verdict": Verdict.INVALID}, {"confirmed": False}])
def test_an_invalid_search_or_an_unconfirmed_bracket_decides_nothing(now, bad):
    sound, doubtful = searched(10, 11), searched(*now, **bad)
    for pair in ((sound, doubtful), (doubtful, sound)):
        result = compare_runs(*(search_of((each,)) for each in pair))
        (change,) = result.changes
        assert (change.change, change.rules_out_worse) == (Change.INCONCLUSIVE, False)
        assert result.exit_code == 3
        if "verdict" in bad:
            name = "B" if pair[1] is doubtful else "A"
            assert change.reason == f"the search of {name} is invalid"
            assert f"run {name}, a: the client fell short" in result.notes


def test_a_bracket_confirmed_further_apart_is_as_wide_as_that():
    wide = msgspec.structs.replace(searched(20, 21), confirmed_pass_per_s=5)
    result = compare_runs(search_of((searched(10, 11),)), search_of((wide,)))
    assert result.changes[0].change is Change.INCONCLUSIVE
    assert result.changes[0].low == pytest.approx(5 / 11)


@pytest.mark.parametrize(
    "changes", [{"slo": {"ttft_ms": 1}}, {"search": {"duration_s": 9}}, {"timeout_s": 1}]
)
def test_searches_under_other_loads_or_slos_have_no_verdict(changes):
    a, b = search_of((searched(10, 11),)), search_of((searched(5, 6),), **changes)
    result = compare_runs(a, b)
    assert result.changes[0].change is Change.INCONCLUSIVE and result.exit_code == 3
    assert "another load in A than in B" in result.changes[0].reason
    finer = search_of((searched(5, 6),), search={"precision": 0.05, "high_per_s": 30})
    assert compare_runs(a, finer).exit_code == 1


def test_a_variant_that_only_one_search_has_is_told():
    other = msgspec.structs.replace(searched(10, 11), variant="b")
    result = compare_runs(search_of((searched(10, 11), other)), search_of((searched(10, 11),)))
    assert "only in A: b of the search" in result.notes and result.exit_code == 3


def test_the_result_is_plain_data():
    result = compare_runs(run_data(seed=1), run_data(1.2, seed=2))
    assert len(msgspec.json.decode(msgspec.json.encode(result))["changes"]) == 20
