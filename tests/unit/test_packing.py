"""One GPU type: fractions, the fewest GPUs, teams on nodes, replicas beyond the minimum."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import PlanError
from serve_app.planning.bounds import fewest_bins_bound, smallest_at_least, subset_sums
from serve_app.planning.exact import SEARCHED_SIZES, fewest_bins
from serve_app.planning.first_fit import first_fit_decreasing
from serve_app.planning.packing import Demand, Packing, Pool, pack

GPU = 10_000

SIZES = st.one_of(st.integers(1, GPU), st.sampled_from([2_000, 2_500, 3_334, 5_000, 5_001, GPU]))


def fewest_by_trying(sizes, capacity=GPU):
    """Every way to part the sizes into bins."""
    best = len(sizes)

    def put(rest, bins):
        nonlocal best
        if len(bins) >= best:
            return
        if not rest:
            best = len(bins)
            return
        for i in range(len(bins)):
            if bins[i] + rest[0] <= capacity:
                put(rest[1:], [*bins[:i], bins[i] + rest[0], *bins[i + 1 :]])
        put(rest[1:], [*bins, rest[0]])

    put(sizes, [])
    return best


def demand(name, size_bp, minimum=1, maximum=None, **kwargs):
    return Demand(name, size_bp, minimum=minimum, maximum=maximum or minimum, **kwargs)


def check(packing: Packing, demands):
    """What holds for every packing."""
    placed = packing.replicas()
    missing = Counter({u.name: u.count for u in packing.unplaced})
    parts = Counter()
    for gpu in packing.placements:
        assert 0 < gpu.used_bp <= GPU
        for share in gpu.shares:
            parts[share.name] += share.count
    for d in demands:
        assert parts[d.name] == placed.get(d.name, 0) * d.gpus
        assert d.minimum <= placed.get(d.name, 0) + missing[d.name] <= d.maximum
        if missing[d.name]:
            assert placed.get(d.name, 0) + missing[d.name] == d.minimum
    slots = [(p.gpu, p.node, p.index) for p in packing.placements]
    assert len(set(slots)) == len(slots)
    for use in packing.types:
        mine = [p for p in packing.placements if p.gpu == use.pool.gpu]
        assert all(p.node * use.pool.gpus_per_node + p.index < use.pool.count for p in mine)
        assert use.lower_bound_gpus <= use.needed_gpus
        for d in use.demands:
            if d.gpus > 1:
                by_node = Counter(p.node for p in mine for s in p.shares if s.name == d.name)
                assert all(n % d.gpus == 0 for n in by_node.values())


@given(st.integers(1, 2**40), st.lists(st.integers(1, 2**40), max_size=12))
def test_what_ray_puts_together_fits_the_bytes(usable, needs):
    """Shares that sum to 10,000 at most, rounded up each, have bytes that fit the GPU."""
    needs = [min(need, usable) for need in needs]
    together, shares = [], 0
    for need in needs:
        share = -(-need * GPU // usable)
        if shares + share <= GPU:
            together.append(need)
            shares += share
    assert sum(together) <= usable


@given(st.lists(SIZES, max_size=8))
@settings(max_examples=150)
def test_up_to_eight_replicas_are_packed_best(sizes):
    packing = pack([demand(f"v{i}", s) for i, s in enumerate(sizes)], [Pool("L4", len(sizes))])
    assert packing.exact
    assert packing.gap_gpus == 0
    assert packing.needed_gpus == len(packing.placements) == fewest_by_trying(sizes)


@given(st.lists(st.integers(1, 12), max_size=8), st.integers(12, 24))
@settings(max_examples=200)
def test_coarse_sizes_are_packed_best(sizes, capacity):
    """Small numbers meet at the edges far more often than basis points do."""
    best = fewest_by_trying(sizes, capacity)
    found = fewest_bins(sizes, capacity)
    assert len(found.bins) == found.lower_bound == best
    assert fewest_bins_bound(sizes, capacity) <= best
    assert sorted(s for content in found.bins for s in content) == sorted(sizes)
    assert all(sum(content) <= capacity for content in found.bins)


def test_the_search_beats_first_fit_decreasing():
    sizes = [4_000, 4_000, 3_000, 3_000, 3_000, 3_000]
    filled, _ = first_fit_decreasing(sizes, [GPU] * 6)
    assert sum(map(bool, filled)) == 3
    assert len(fewest_bins(sizes, GPU).bins) == 2


def test_the_search_may_end_between_the_bound_and_first_fit():
    counts = {17: 4, 18: 7, 26: 4, 27: 4, 34: 6, 35: 7, 45: 4, 51: 5, 52: 7}
    sizes = [size for size, count in counts.items() for _ in range(count)]
    filled, _ = first_fit_decreasing(sizes, [100] * len(sizes))
    assert (fewest_bins_bound(sizes, 100), sum(map(bool, filled))) == (17, 19)
    found = fewest_bins(sizes, 100, node_budget=500_000)
    assert (len(found.bins), found.lower_bound) == (18, 18)
    assert all(sum(content) <= 100 for content in found.bins)
    assert sorted(s for content in found.bins for s in content) == sizes


def test_a_spent_budget_keeps_first_fit_and_says_so():
    sizes = [4_000, 4_000, 3_000, 3_000, 3_000, 3_000]
    found = fewest_bins(sizes, GPU, node_budget=1)
    assert (len(found.bins), found.lower_bound, found.exact) == (3, 2, False)


def test_the_bound_counts_what_cannot_share():
    assert fewest_bins_bound([5_001] * 3, GPU) == 3
    assert fewest_bins_bound([7_000, 7_000, 4_000, 4_000, 4_000], GPU) == 4
    assert fewest_bins_bound([6_000, 4_001, 4_001, 4_001], GPU) == 3
    assert fewest_bins_bound([], GPU) == 0


def cut_at_random(bins, random, parts):
    """Full bins cut into sizes: the best number of bins is known."""
    sizes = []
    for _ in range(bins):
        cuts = sorted(random.sample(range(1, GPU), random.randint(1, parts) - 1))
        sizes += [b - a for a, b in zip([0, *cuts], [*cuts, GPU], strict=True)]
    random.shuffle(sizes)
    return sizes


@pytest.mark.parametrize("seed", range(20))
def test_never_worse_than_eleven_ninths(seed):
    random = Random(seed)
    best = random.choice([3, 10, 40, 150])
    sizes = cut_at_random(best, random, parts=random.choice([2, 3, 4, 8]))
    demands = [demand(f"v{i}", s) for i, s in enumerate(sizes)]
    packing = pack(demands, [Pool("L4", 2 * best)])
    check(packing, demands)
    assert not packing.unplaced
    assert packing.lower_bound_gpus == best
    assert best <= packing.needed_gpus <= 11 / 9 * best + 6 / 9
    assert packing.exact == (packing.needed_gpus == best)


def test_hard_triples_stay_within_the_bound():
    """Sizes above a quarter, three to a bin, are where first-fit decreasing loses most."""
    random = Random(7)
    sizes = []
    for _ in range(80):
        a, b = random.randint(2_501, 3_500), random.randint(2_501, 3_500)
        sizes += [a, b, GPU - a - b]
    assert len(sizes) > SEARCHED_SIZES
    found = fewest_bins(sizes, GPU)
    assert 80 < len(found.bins) <= 11 / 9 * 80 + 6 / 9
    assert found.lower_bound == 80


@given(st.lists(SIZES, max_size=30), st.lists(st.integers(0, GPU), max_size=10))
def test_first_fit_is_first_fit(sizes, rooms):
    filled, left_over = first_fit_decreasing(sizes, rooms)
    free, expected = list(rooms), [[] for _ in rooms]
    homeless = []
    for size in sorted(sizes, reverse=True):
        i = next((i for i, room in enumerate(free) if room >= size), None)
        if i is None:
            homeless.append(size)
        else:
            free[i] -= size
            expected[i].append(size)
    assert (filled, left_over) == (expected, homeless)


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(0, 60))
def test_subset_sums_are_all_there_are(sizes, threshold):
    sums = {0}
    for size in sizes:
        sums |= {s + size for s in sums}
    sums = {s for s in sums if s <= 60}
    reachable = subset_sums(sizes, 60)
    assert {i for i in range(61) if reachable >> i & 1} == sums
    assert smallest_at_least(reachable, threshold) == min(
        (s for s in sums if s >= threshold), default=None
    )


DEMANDS = st.lists(
    st.builds(
        lambda size, width, low, more, weight: (size, width, low, more, weight),
        SIZES,
        st.sampled_from([1, 1, 1, 2, 3, 4]),
        st.integers(0, 3),
        st.integers(0, 4),
        st.sampled_from([0.5, 1.0, 3.0]),
    ),
    max_size=7,
).map(
    lambda rows: [
        Demand(
            f"v{i}",
            size if width == 1 else GPU * width,
            gpus=width,
            minimum=low,
            maximum=low + more,
            weight=weight,
        )
        for i, (size, width, low, more, weight) in enumerate(rows)
    ]
)


@given(DEMANDS, st.integers(0, 14), st.sampled_from([1, 2, 4]))
@settings(max_examples=200)
def test_nothing_is_lost_doubled_or_too_much(demands, gpus, width):
    pools = [Pool("L4", gpus, gpus_per_node=width)]
    packing = pack(demands, pools)
    check(packing, demands)
    assert packing == pack(demands, pools)
    homes = [d for d in demands if d.gpus <= width]
    best = sum(d.gpus * d.minimum for d in homes if d.gpus > 1) + fewest_bins_bound(
        [d.size_bp for d in homes if d.gpus == 1 for _ in range(d.minimum)], GPU
    )
    assert best <= packing.needed_gpus


@given(DEMANDS, st.integers(0, 14), st.sampled_from([1, 2, 4]))
def test_room_that_is_left_is_too_small_for_what_may_still_run(demands, gpus, width):
    packing = pack(demands, [Pool("L4", gpus, gpus_per_node=width)])
    placed, lacking = packing.replicas(), {u.name for u in packing.unplaced}
    used = {(p.node, p.index): p.used_bp for p in packing.placements}
    free = [GPU - used.get(divmod(g, width), 0) for g in range(gpus)]
    for d in demands:
        if d.name in lacking or placed[d.name] == d.maximum:
            continue
        if d.gpus == 1:
            assert max(free, default=0) < d.size_bp
        else:
            nodes = [free[i : i + width] for i in range(0, gpus, width)]
            assert all(node.count(GPU) < d.gpus for node in nodes)


def test_the_order_of_the_demands_does_not_matter_for_the_number():
    random = Random(3)
    demands = [demand(f"v{i}", random.randint(500, 6_000)) for i in range(20)]
    numbers = set()
    for _ in range(5):
        random.shuffle(demands)
        numbers.add(pack(demands, [Pool("L4", 20)]).needed_gpus)
    assert len(numbers) == 1


def test_free_space_is_shared_by_weight():
    demands = [demand("a", 1_000, 1, 50, weight=1.0), demand("b", 1_000, 1, 50, weight=3.0)]
    assert pack(demands, [Pool("L4", 2)]).replicas() == {"a": 5, "b": 15}


def test_free_space_is_shared_in_bytes_and_not_in_replicas():
    demands = [demand("large", 2_000, 1, 50), demand("small", 500, 1, 50)]
    replicas = pack(demands, [Pool("L4", 2)]).replicas()
    assert replicas == {"large": 5, "small": 20}


def test_a_variant_at_its_maximum_leaves_its_part_to_others():
    demands = [demand("a", 2_000, 1, 2), demand("b", 2_000, 1, 9)]
    assert pack(demands, [Pool("L4", 1)]).replicas() == {"a": 2, "b": 3}


def test_no_minimum_and_no_maximum():
    demands = [
        Demand("off", 3_000, minimum=0, maximum=0),
        Demand("idle", 3_000, minimum=0, maximum=2),
    ]
    packing = pack(demands, [Pool("L4", 1)])
    assert packing.replicas() == {"off": 0, "idle": 2}
    assert (packing.needed_gpus, packing.unplaced, packing.exact) == (0, (), True)


def test_nothing_on_nothing():
    packing = pack([], [])
    assert (packing.placements, packing.unplaced, packing.needed_gpus) == ((), (), 0)
    unplaced = pack([demand("a", 1)], []).unplaced
    assert [(u.name, u.count, u.reason) for u in unplaced] == [("a", 1, "there are no GPUs")]


def test_too_few_gpus_is_said_with_need_and_have():
    packing = pack([demand("a", 6_000, 3)], [Pool("L4", 2)])
    assert packing.replicas() == {"a": 2}
    (lacking,) = packing.unplaced
    assert (lacking.name, lacking.count) == ("a", 1)
    assert "take 3 L4 (at least 3)" in lacking.reason
    assert "there are 2" in lacking.reason


def test_a_variant_larger_than_the_gpu_is_said_to_be():
    (lacking,) = pack([demand("a", 12_500, 2)], [Pool("L4", 9)]).unplaced
    assert lacking.count == 2
    assert "1.25 times the memory of one L4" in lacking.reason


def test_a_team_stays_on_one_node():
    team = demand("team", 2 * GPU, 2, gpus=2)
    fits = pack([team, demand("a", 9_000)], [Pool("L4", 5, gpus_per_node=2)])
    assert not fits.unplaced
    assert {(p.node, p.index) for p in fits.placements} == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)}
    apart = pack([demand("team", 3 * GPU, 2, gpus=3)], [Pool("L4", 8, gpus_per_node=4)])
    assert {p.node for p in apart.placements} == {0, 1}
    short = pack([demand("team", 3 * GPU, 2, gpus=3)], [Pool("L4", 7, gpus_per_node=4)])
    assert not short.unplaced  # the last node has just three
    lacking = pack([demand("team", 3 * GPU, 2, gpus=3)], [Pool("L4", 6, gpus_per_node=4)])
    assert lacking.replicas() == {"team": 1}
    assert "take 3 nodes of 4 L4, and there are 2" in lacking.unplaced[0].reason


def test_a_team_larger_than_any_node_is_said_to_be():
    (lacking,) = pack([demand("team", 4 * GPU, gpus=4)], [Pool("L4", 8, gpus_per_node=2)]).unplaced
    assert "4 GPUs of one node" in lacking.reason


def test_teams_that_first_fit_decreasing_cannot_seat():
    """On nodes of ten: 4+3+3 twice. First-fit decreasing begins with 4+4 and needs three."""
    demands = [demand("four", 4 * GPU, 2, gpus=4), demand("three", 3 * GPU, 4, gpus=3)]
    _, homeless = first_fit_decreasing([4, 4, 3, 3, 3, 3], [10, 10])
    assert homeless == [3]
    packing = pack(demands, [Pool("H100", 20, gpus_per_node=10)])
    check(packing, demands)
    assert not packing.unplaced


def test_teams_on_a_last_node_with_fewer_gpus():
    """4+4 leaves 3+3+3+3 no place, unless 4+3+3 is on the whole node and 4+3 on the last."""
    demands = [demand("four", 4 * GPU, 2, gpus=4), demand("three", 3 * GPU, 3, gpus=3)]
    packing = pack(demands, [Pool("H100", 17, gpus_per_node=10)])
    check(packing, demands)
    assert not packing.unplaced
    short = pack(demands, [Pool("H100", 16, gpus_per_node=10)])
    check(short, demands)
    assert sum(u.count for u in short.unplaced) == 1


def test_shares_go_to_nodes_that_teams_have_broken_into():
    demands = [demand("team", 2 * GPU, 1, 2, gpus=2), demand("a", 9_000, 2)]
    packing = pack(demands, [Pool("L4", 6, gpus_per_node=3)])
    assert packing.replicas() == {"team": 2, "a": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_bp": 0},
        {"gpus": 0},
        {"minimum": 2, "maximum": 1},
        {"minimum": -1},
        {"weight": 0.0},
    ],
)
def test_demands_that_are_none(wrong):
    right = {"name": "a", "size_bp": 1, "gpus": 1, "minimum": 1, "maximum": 1, "weight": 1.0}
    Demand(**right)
    with pytest.raises(PlanError, match="variant a"):
        Demand(**(right | wrong))


def test_names_are_given_once():
    with pytest.raises(PlanError, match="variant a is given more than once"):
        pack([demand("a", 1), demand("a", 2)], [Pool("L4", 1)])
    with pytest.raises(PlanError, match="GPU type L4"):
        pack([demand("a", 1)], [Pool("L4", 1), Pool("L4", 2)])
    with pytest.raises(PlanError, match="pool of L4"):
        Pool("L4", -1)
