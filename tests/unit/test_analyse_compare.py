"""Two runs against each other."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from loadtests.analyse.compare_runs import RunData, compare_runs, requests_digest
from loadtests.analyse.nouns import Change, Saturation, Verdict
from loadtests.analyse.share_changes import compare_shares, judged
from loadtests.records.manifest import SCHEMA_VERSION, Manifest
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
    assert len(result.changes) == 2 * (6 + 2)
    assert result.paired_stages == ("s",) and result.notes == ()
    assert result.exit_code == 0
    assert [each.variant for each in result.changes] == ["a"] * 8 + ["b"] * 8


def test_a_slower_run_is_worse_and_a_faster_one_better():
    slow = compare_runs(run_data(seed=1), run_data(1.2, seed=2))
    assert change_of(slow, "ttft_user_ms", 0.95).change is Change.WORSE
    assert change_of(slow, "ttft_user_ms", 0.95).effect == pytest.approx(1.2, rel=0.03)
    assert slow.exit_code == 1
    fast = compare_runs(run_data(1.2, seed=1), run_data(seed=2))
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
    # failures in a row, so far less than 80 independent ones: too few to be sure after Holm or not
    assert (errors.change is Change.WORSE) == (errors.p_adjusted < 0.05 and errors.low > 0)
    assert result.exit_code in (1, 3)
    spread = [cell_of([None if i % 25 == 0 else 9.0 for i in range(1000)], variant="a")]
    fine = [cell_of([9.0] * 1000, variant="a")]
    found = compare_shares(("s", "a"), (campaign, campaign), (fine, spread))
    assert [judged(each, each.p_value).change for each in found] == [Change.WORSE] * 2
    found = compare_shares(("s", "a"), (campaign, campaign), (spread, fine))
    assert [judged(each, each.p_value).change for each in found] == [Change.BETTER] * 2
    found = compare_shares(("s", "a"), (campaign, campaign), (fine, fine))
    assert [judged(each, each.p_value).change for each in found] == [Change.SAME] * 2


def test_the_interval_of_a_difference_is_newcombes():
    a = [cell_of([None if i % 20 == 0 else 9.0 for i in range(400)])]
    b = [cell_of([None if i % 50 == 0 else 9.0 for i in range(400)])]
    (errors,) = compare_shares(("s", "a"), (campaign_of(slo=None),) * 2, (a, b))
    first, second = (scipy_stats.binomtest(k, 400).proportion_ci(0.95, "exact") for k in (20, 8))
    assert errors.effect == pytest.approx(-0.03)
    assert errors.low == pytest.approx(-0.03 - math.hypot(0.02 - second.low, first.high - 0.05))
    assert errors.high == pytest.approx(-0.03 + math.hypot(second.high - 0.02, 0.05 - first.low))
    assert errors.p_value == pytest.approx(scipy_stats.fisher_exact([[20, 380], [8, 392]]).pvalue)


def test_shares_of_few_requests_leave_room_for_worse():
    few = [cell_of([9.0] * 50)]
    for each in compare_shares(("s", "a"), (CAMPAIGN, CAMPAIGN), (few, few)):
        found = judged(each, each.p_value)
        assert (found.change, found.rules_out_worse) == (Change.INCONCLUSIVE, False)


def test_attainment_is_compared_under_one_slo_only():
    other = campaign_of(("a", "b"), slo={"ttft_ms": 61})
    result = compare_runs(run_data(), run_data(campaign=other))
    assert "attainment" not in {each.metric for each in result.changes}
    assert "different SLOs" in result.notes[0]


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


def searched(held, failed):
    return Saturation(
        variant="a",
        highest_passed_per_s=held,
        lowest_failed_per_s=failed,
        probes=(),
        verdict=Verdict.PASS,
        reason="",
    )


@pytest.mark.parametrize(
    ("was", "now", "change", "code"),
    [
        ((10, 11), (10, 11), "same", 0),
        ((10, 11), (12, 13), "better", 0),
        ((10, 11), (8, 9), "worse", 1),
        ((10, 11), (10.5, 11.5), "inconclusive", 0),
        ((10, 11), (9.5, 10.5), "inconclusive", 3),
        ((10, None), (10, 11), "inconclusive", 3),
        ((10, 11), (None, 1), "inconclusive", 3),
    ],
)
def test_capacities_are_compared_by_their_brackets(was, now, change, code):
    search = {"duration_s": 2, "low_per_s": 2, "high_per_s": 20, "precision": 0.1}
    campaign = campaign_of(("a", "b"), stages=None, search=search)
    a, b = (
        run_data(campaign=campaign, cells=(), saturation=(searched(*each),)) for each in (was, now)
    )
    result = compare_runs(a, b)
    assert [each.change for each in result.changes] == [change]
    assert result.exit_code == code


def test_the_result_is_plain_data():
    result = compare_runs(run_data(seed=1), run_data(1.2, seed=2))
    assert len(msgspec.json.decode(msgspec.json.encode(result))["changes"]) == 16
