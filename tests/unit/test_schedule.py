import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtests.campaign import parse_campaign
from loadtests.plan.cells import arrival_offsets, plan_cells
from serve_app.domain.units import NS_PER_S


def campaign(**changes: object):
    raw = {
        "target": {"model": "m", "variants": ["a", "b", "c"]},
        "workload": {
            "prompts": {"kind": "jsonl", "path": str(Path("/nowhere.jsonl"))},
            "max_tokens": [4, 9],
        },
        "stages": [
            {"name": "low", "kind": "poisson", "rate_per_s": 5, "duration_s": 4},
            {"name": "high", "kind": "constant", "rate_per_s": 20, "duration_s": 2},
        ],
        "blocks": 4,
        "warmup_s": 1.0,
        "cooldown_s": 0.5,
        "seed": 3,
    }
    return parse_campaign(raw | changes, "test")


@given(st.sampled_from(["constant", "poisson"]), st.floats(0.1, 200), st.floats(0.1, 50))
def test_arrivals_are_ordered_inside_the_stage_and_as_many_as_asked(kind, rate, length):
    offsets = arrival_offsets(kind, rate, length, random.Random(0))
    assert list(offsets) == sorted(offsets)
    assert all(0 <= offset < length for offset in offsets)
    assert abs(len(offsets) - rate * length) <= 1


def test_constant_arrivals_are_even():
    assert arrival_offsets("constant", 4, 1, random.Random(0)) == (0, 0.25, 0.5, 0.75)


def test_poisson_gaps_are_exponential():
    offsets = arrival_offsets("poisson", 50, 100, random.Random(9))
    gaps = [after - before for before, after in itertools.pairwise(offsets)]
    assert scipy_stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01


def test_a_block_gives_every_variant_the_same_requests_in_random_order():
    cells = plan_cells(campaign(), n_prompts=50)
    assert [cell.index for cell in cells] == list(range(2 * 4 * 3))
    orders = []
    for start in range(0, len(cells), 3):
        block = cells[start : start + 3]
        assert {(cell.stage, cell.block) for cell in block} == {(block[0].stage, block[0].block)}
        assert {cell.variant for cell in block} == {"a", "b", "c"}
        assert block[0].requests == block[1].requests == block[2].requests
        orders.append(tuple(cell.variant for cell in block))
    assert len(set(orders)) > 2
    assert cells[0].requests != cells[6].requests


def test_phases_follow_the_window():
    cell = plan_cells(campaign(), n_prompts=50)[0]
    assert cell.window_ns == (NS_PER_S, 5 * NS_PER_S)
    assert cell.end_ns == round(5.5 * NS_PER_S)
    assert cell.window_s == 4.0
    for request in cell.requests:
        low, high = cell.window_ns
        measured = low <= request.offset_ns < high
        assert (request.phase == "measured") == measured
        assert 4 <= request.max_tokens <= 9
        assert 0 <= request.prompt < 50
    assert sum(request.phase == "measured" for request in cell.requests) == 20


def test_the_plan_follows_from_the_seed():
    assert plan_cells(campaign(), 50) == plan_cells(campaign(), 50)
    assert plan_cells(campaign(), 50) != plan_cells(campaign(seed=4), 50)


@pytest.mark.parametrize("change", [{"warmup_s": 0, "cooldown_s": 0}])
def test_without_warmup_everything_is_measured(change):
    cells = plan_cells(campaign(**change), 5)
    assert {request.phase for cell in cells for request in cell.requests} == {"measured"}
