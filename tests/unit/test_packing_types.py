"""Several GPU types: each variant on one of them, at the lowest price."""

from itertools import product
from random import Random

import pytest

from serve_app.planning.options import options_of
from serve_app.planning.packing import Demand, Pool, pack
from serve_app.planning.type_costs import cost_bound, costs_of
from serve_app.planning.type_search import search_types
from tests.unit.test_packing import check, demand, fewest_by_trying

GPU = 10_000


def cheapest_by_trying(demands, pools, sizes):
    """Every choice of types for every variant, each packed in every way; None if none fits."""
    best = None
    choices = [
        [p for p in pools if sizes[d.name].get(p.gpu, 10 * GPU) <= GPU * d.gpus] for d in demands
    ]
    for homes in product(*choices):
        cost = 0.0
        for pool in pools:
            mine = [d for d, home in zip(demands, homes, strict=True) if home is pool]
            shares = [
                sizes[d.name][pool.gpu] for d in mine if d.gpus == 1 for _ in range(d.minimum)
            ]
            teams = [d.gpus for d in mine if d.gpus > 1 for _ in range(d.minimum)]
            gpus = sum(teams) + fewest_by_trying(shares)
            nodes = fewest_by_trying(teams, pool.gpus_per_node)
            if gpus > pool.count or nodes * pool.gpus_per_node > pool.count:
                break
            cost += gpus * (1 if pool.price_usd_per_hour is None else pool.price_usd_per_hour)
        else:
            best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(60))
def test_few_variants_are_placed_at_the_lowest_price(seed):
    random = Random(seed)
    priced = seed % 3 > 0
    pools = [
        Pool(gpu, random.randint(1, 6), 1, price if priced else None)
        for gpu, price in (("L4", 0.8), ("A10G", 1.0), ("H100", random.choice([1.7, 3.0, 8.0])))
    ]
    demands = [demand(f"v{i}", GPU, random.randint(1, 2)) for i in range(random.randint(1, 4))]
    sizes = {
        d.name: {
            "L4": random.randint(2_000, 12_000),
            "A10G": random.randint(2_000, 12_000),
            "H100": random.randint(500, 6_000),
        }
        for d in demands
    }
    best = cheapest_by_trying(demands, pools, sizes)
    packing = pack(demands, pools, sizes)
    check(packing, demands)
    if best is None:
        assert packing.unplaced
        return
    assert not packing.unplaced
    assert packing.exact
    found = packing.price_usd_per_hour if priced else packing.needed_gpus
    assert found == pytest.approx(best)
    if priced:
        assert packing.lower_bound_usd_per_hour == pytest.approx(best)


@pytest.mark.parametrize("seed", range(40))
def test_the_bound_of_the_cost_is_one(seed):
    """Also where the cheap GPUs are too few for all."""
    random = Random(seed)
    pools = [Pool("L4", 2, 1, 0.5), Pool("A10G", 3, 1, 2.0), Pool("H100", 9, 1, 3.0)]
    demands = [demand(f"v{i}", GPU) for i in range(5)]
    sizes = {d.name: {p.gpu: random.randint(2_000, 9_000) for p in pools} for d in demands}
    options, _ = options_of(demands, pools, sizes)
    costs, priced = costs_of(pools)
    assert priced
    bound = cost_bound(options, pools, costs)
    assert 0 < bound <= round(1e6 * cheapest_by_trying(demands, pools, sizes))


def test_the_bound_of_the_cost_knows_what_there_is_too_little_of():
    demands = [demand(f"v{i}", 8_000) for i in range(4)]
    pools = [Pool("L4", 2, 1, 1.0), Pool("H100", 9, 1, 3.0)]
    options, _ = options_of(demands, pools, None)
    without = cost_bound(options, [Pool("L4", 9, 1, 1.0), pools[1]], [1_000_000, 3_000_000])
    assert without == 4_000_000  # four, each alone on its GPU
    assert 5_000_000 < cost_bound(options, pools, [1_000_000, 3_000_000]) <= 8_000_000


@pytest.mark.parametrize("seed", range(15))
def test_teams_and_shares_on_two_types(seed):
    random = Random(seed)
    pools = [Pool("L4", 8, 4, 0.8), Pool("H100", 4, 2, 3.0)]
    demands = [demand("t", 2 * GPU, random.randint(1, 2), gpus=2), demand("a", GPU, 2)]
    sizes = {
        "t": {"L4": 2 * GPU, "H100": 2 * GPU},
        "a": {"L4": random.randint(1, GPU), "H100": random.randint(1, 3_000)},
    }
    packing = pack(demands, pools, sizes)
    check(packing, demands)
    assert packing.exact
    assert packing.price_usd_per_hour == pytest.approx(cheapest_by_trying(demands, pools, sizes))


def test_sharing_one_large_gpu_beats_the_cheapest_gpu_for_each():
    demands = [demand(name, GPU) for name in "abc"]
    sizes = {name: {"L4": 6_000, "H100": 3_000} for name in "abc"}
    packing = pack(demands, [Pool("L4", 3, 1, 1.0), Pool("H100", 1, 1, 2.5)], sizes)
    assert {p.gpu for p in packing.placements} == {"H100"}
    assert (packing.price_usd_per_hour, packing.exact) == (2.5, True)


def test_a_missing_price_makes_it_a_matter_of_gpus():
    sizes = {"a": {"L4": 9_000, "H100": 2_000}, "b": {"L4": 9_000, "H100": 2_000}}
    demands = [demand("a", GPU), demand("b", GPU)]
    packing = pack(demands, [Pool("L4", 2, 1, 0.1), Pool("H100", 1)], sizes)
    assert packing.needed_gpus == 1
    assert packing.price_usd_per_hour is packing.lower_bound_usd_per_hour is None


def test_a_type_that_is_absent_is_not_used():
    pools = [Pool("T4", 9, 1, 0.1), Pool("L4", 9, 1, 1.0)]
    packing = pack([demand("fp8", GPU), demand("none", GPU)], pools, {"fp8": {"L4": 5_000}})
    assert packing.home("fp8")[0].gpu == "L4"
    assert packing.home("none") is None
    (lacking,) = packing.unplaced
    assert lacking.reason == "T4 cannot run it; L4 cannot run it"


def test_a_full_cheap_type_sends_variants_to_the_next():
    demands = [demand(f"v{i}", 9_000) for i in range(30)]
    packing = pack(demands, [Pool("L4", 20, 1, 1.0), Pool("L40S", 20, 1, 2.0)])
    assert not packing.unplaced
    assert packing.price_usd_per_hour == 40.0
    assert packing.lower_bound_usd_per_hour <= 40.0


def test_idle_variants_are_where_they_have_room():
    busy = demand("busy", 9_000, 2)
    idle = Demand("idle", 5_000, minimum=0, maximum=3)
    packing = pack([busy, idle], [Pool("L4", 2, 1, 1.0), Pool("H100", 3, 1, 9.0)])
    assert packing.replicas() == {"busy": 2, "idle": 3}
    assert packing.home("idle")[0].gpu == "H100"
    assert packing.price_usd_per_hour == 2.0


@pytest.mark.parametrize("seed", range(5))
def test_many_variants_are_near_the_bound(seed):
    random = Random(seed)
    pools = [Pool("L4", 60, 1, 0.8), Pool("A10G", 60, 1, 1.0), Pool("H100", 60, 1, 8.0)]
    demands = [demand(f"v{i}", GPU, random.randint(1, 2)) for i in range(60)]
    sizes = {d.name: {p.gpu: random.randint(300, 5_000) for p in pools} for d in demands}
    packing = pack(demands, pools, sizes)
    check(packing, demands)
    assert not packing.unplaced
    bound = packing.lower_bound_usd_per_hour
    assert bound <= packing.price_usd_per_hour <= 1.15 * bound + 0.8


def test_a_search_that_cannot_pack_claims_no_more_than_it_knows(monkeypatch):
    """4+3+3 twice: without steps for the bins it has three GPUs, and knows that two may do."""
    demands = [demand("four", 4_000, 2), demand("three", 3_000, 4)]
    pools = [Pool("L4", 9), Pool("H100", 9)]
    sizes = {"four": {"L4": 4_000}, "three": {"L4": 3_000, "H100": 9_000}}
    options, _ = options_of(demands, pools, sizes)
    start = {"four": 0, "three": 0}
    assert search_types(options, pools, [1, 1], 0, start) == (start, 2)
    monkeypatch.setattr("serve_app.planning.type_search.BIN_BUDGET", 0)
    assert search_types(options, pools, [1, 1], 0, start) == (start, 2)
    monkeypatch.setattr("serve_app.planning.type_search.STEPS", 1)
    assert search_types(options, pools, [1, 1], 1, start) == (start, 1)
