"""Whatever the order, whatever the rule: enough GPUs are enough, and one fewer is not."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import PlanError
from serve_app.planning.any_order import any_order_gpus
from serve_app.planning.covering import SEARCHED_REPLICAS, Covering
from serve_app.planning.packing import Demand, Pool, pack
from tests.unit.test_packing import SIZES, demand

GPU = 10_000

RULES = {
    "first": lambda fitting, free: fitting[0],
    "best": lambda fitting, free: min(fitting, key=lambda g: free[g]),
    "worst": lambda fitting, free: max(fitting, key=lambda g: free[g]),
    "any": None,
}


def refused(sizes, gpus, rule, random, churn):
    """Whether one of `sizes`, in this order, finds no GPU; up to `churn` leave and come again."""
    free, homes = [GPU] * gpus, {}
    queue = list(enumerate(sizes))
    while queue:
        i, size = queue.pop(0)
        fitting = [g for g in range(gpus) if free[g] >= size]
        if not fitting:
            return True
        choose = RULES[rule] or (lambda fitting, free: random.choice(fitting))
        homes[i] = choose(fitting, free)
        free[homes[i]] -= size
        if churn and random.random() < 0.5:
            churn -= 1
            gone = random.choice(list(homes))
            free[homes.pop(gone)] += sizes[gone]
            queue.insert(random.randint(0, len(queue)), (gone, sizes[gone]))
    return False


@given(st.lists(SIZES, min_size=1, max_size=10), st.sampled_from(sorted(RULES)), st.integers(0, 99))
@settings(max_examples=150)
def test_no_order_and_no_rule_leaves_one_out(sizes, rule, seed):
    random = Random(seed)
    needed = any_order_gpus([demand(f"v{i}", s) for i, s in enumerate(sizes)], Pool("L4", 99)).gpus
    for _ in range(5):
        random.shuffle(sizes)
        assert not refused(sizes, needed, rule, random, churn=10)


@given(st.lists(SIZES, min_size=1, max_size=8), st.integers(0, 99), st.data())
@settings(max_examples=100)
def test_nor_does_one_replica_more_during_an_update(sizes, seed, data):
    random = Random(seed)
    demands = [demand(f"v{i}", s) for i, s in enumerate(sizes)]
    needed = any_order_gpus(demands, Pool("L4", 99), surge=1).gpus
    extended = [*sizes, data.draw(st.sampled_from(sizes))]
    for rule in RULES:
        random.shuffle(extended)
        assert not refused(extended, needed, rule, random, churn=10)


def most_covered_by_trying(sizes, least):
    """Every way to put sizes on GPUs (or leave them out): most GPUs with `least` or more."""
    states = {()}
    for size in sizes:
        grown = set(states)
        for state in states:
            grown.add(tuple(sorted([*state, size])))
            for i in range(len(state)):
                if state[i] + size <= GPU:
                    grown.add(tuple(sorted([*state[:i], state[i] + size, *state[i + 1 :]])))
        states = grown
    return max(sum(used >= least for used in state) for state in states)


@given(st.lists(st.integers(1, 10).map(lambda n: n * 1_000), min_size=1, max_size=6))
@settings(max_examples=80)
def test_one_gpu_fewer_is_not_enough(sizes):
    """The number is that of the worst case: as many GPUs too full as can be, then the last one."""
    worst = max(
        most_covered_by_trying(sizes[:i] + sizes[i + 1 :], GPU - s + 1) for i, s in enumerate(sizes)
    )
    demands = [demand(f"v{i}", s) for i, s in enumerate(sizes)]
    assert any_order_gpus(demands, Pool("L4", 99)).gpus == worst + 1


def test_an_order_that_needs_more_than_the_packing():
    """The best packing pairs small with large; small ones that come first may be together."""
    demands = [demand("small", 2_000, 2), demand("large", 8_000, 2)]
    assert pack(demands, [Pool("L4", 2)]).needed_gpus == 2
    found = any_order_gpus(demands, Pool("L4", 2))
    assert (found.gpus, found.enough, found.guaranteed) == (3, False, False)
    for gpus, left_out in ((2, True), (3, False)):
        for rule in ("first", "best"):
            sizes = [2_000, 2_000, 8_000, 8_000]
            assert refused(sizes, gpus, rule, Random(0), churn=0) is left_out


@given(st.lists(SIZES, min_size=SEARCHED_REPLICAS + 1, max_size=25), st.integers(0, 99))
@settings(max_examples=50)
def test_many_replicas_have_a_bound_that_holds(sizes, seed):
    random = Random(seed)
    needed = any_order_gpus([demand(f"v{i}", s) for i, s in enumerate(sizes)], Pool("L4", 99)).gpus
    for rule in RULES:
        random.shuffle(sizes)
        assert not refused(sizes, needed, rule, random, churn=20)


def test_the_bound_is_not_below_the_search():
    random = Random(1)
    for _ in range(100):
        shares = Counter(random.randint(500, GPU) for _ in range(8))
        covering = Covering(shares, surge=random.randint(0, 2))
        for size in shares:
            assert covering.most(size) <= covering._bound(size)


def test_a_lone_replica_needs_one_gpu():
    assert any_order_gpus([demand("a", GPU)], Pool("L4", 1)).guaranteed
    assert any_order_gpus([], Pool("L4", 0)).guaranteed
    surging = any_order_gpus([demand("a", 6_000)], Pool("L4", 1), surge=1)
    assert (surging.gpus, surging.enough) == (2, False)
    assert any_order_gpus([demand("a", 5_000)], Pool("L4", 1), surge=1).guaranteed


def test_replicas_may_be_given():
    demands = [Demand("a", 6_000, minimum=1, maximum=3)]
    assert any_order_gpus(demands, Pool("L4", 3)).gpus == 1
    assert any_order_gpus(demands, Pool("L4", 3), replicas={"a": 3}).gpus == 3
    assert any_order_gpus(demands, Pool("L4", 3), replicas={}).gpus == 0


def test_a_team_waits_for_a_whole_node():
    """One small share on each of two nodes of two keeps a team of two out of both."""
    demands = [demand("team", 2 * GPU, gpus=2), demand("small", 100, 2)]
    assert any_order_gpus(demands, Pool("L4", 4, 2)).gpus == 6
    assert not any_order_gpus(demands, Pool("L4", 4, 2)).enough
    assert any_order_gpus([demand("team", 2 * GPU, 2, gpus=2)], Pool("L4", 4, 2)).guaranteed
    with_whole = [demand("team", 2 * GPU, gpus=2), demand("one", GPU)]
    assert any_order_gpus(with_whole, Pool("L4", 5, 4)).gpus == 4


@pytest.mark.parametrize(
    ("size", "replicas", "width", "gpus", "strands"),
    [
        (4_000, 8, 2, 4, True),  # measured with Ray 2.60: four of eight wait for ever
        (3_000, 24, 4, 8, True),  # measured: twelve of 24 wait for ever
        (3_000, 12, 2, 4, False),  # measured: all placed
        (4_000, 8, 4, 4, False),  # measured: all placed, one node has no other beside it
        (4_000, 8, 1, 4, False),  # measured: all placed
        (1_800, 80, 8, 16, True),  # ray #52133
        (2_000, 80, 8, 16, False),  # ray #52133
    ],
)
def test_nodes_that_only_seem_to_have_room(size, replicas, width, gpus, strands):
    found = any_order_gpus([demand("a", size, replicas)], Pool("L4", gpus, width))
    assert found.enough
    assert found.may_strand == (("a",) if strands else ())
    assert found.guaranteed is not strands


def stranded(replicas, gpus, width, random, churn):
    """Ray 2.60: any node whose GPUs have room in sum, then the tightest GPU of it, or whole ones.

    Whether one finds no node, or waits on one that only seems to have room.
    """
    nodes = [[GPU] * len(range(i, min(i + width, gpus))) for i in range(0, gpus, width)]
    homes, queue = {}, list(enumerate(replicas))
    while queue:
        i, (size, team) = queue.pop(0)
        seeming = [node for node in nodes if sum(node) >= size]
        if not seeming:
            return True
        node = random.choice(seeming)
        least = GPU if team > 1 else size
        fitting = [g for g, free in enumerate(node) if free >= least]
        chosen = sorted(fitting, key=node.__getitem__)[:team]
        if len(chosen) < team:
            return True
        for g in chosen:
            node[g] -= size // team
        homes[i] = node, chosen
        if churn and random.random() < 0.5:
            churn -= 1
            gone = random.choice(list(homes))
            node, chosen = homes.pop(gone)
            for g in chosen:
                node[g] += replicas[gone][0] // replicas[gone][1]
            queue.insert(random.randint(0, len(queue)), (gone, replicas[gone]))
    return False


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([1_000, 2_000, 2_500, 3_000, 5_000, 6_000, GPU]), st.just(1)),
            st.sampled_from([2, 3]).map(lambda team: (GPU * team, team)),
        ),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 99),
)
@settings(max_examples=300)
def test_what_is_guaranteed_happens_on_nodes_of_several_gpus(replicas, width, nodes, seed):
    random = Random(seed)
    replicas = [(size, team) for size, team in replicas if team <= width]
    demands = [demand(f"v{i}", size, gpus=team) for i, (size, team) in enumerate(replicas)]
    gpus = any_order_gpus(demands, Pool("L4", 99 * width, width)).gpus + nodes
    if not any_order_gpus(demands, Pool("L4", gpus, width)).guaranteed:
        return
    for _ in range(8):
        random.shuffle(replicas)
        assert not stranded(replicas, gpus, width, random, churn=10)


def test_teams_strand_beside_shares():
    team = demand("team", 2 * GPU, gpus=2)
    # [0.9 free, 0.9 free, 0.9 free] is 2.7 and has no whole GPU
    found = any_order_gpus([team, demand("small", 1_000, 3)], Pool("L4", 90, 3))
    assert "team" in found.may_strand
    assert any_order_gpus([team], Pool("L4", 90, 3)).may_strand == ()


def test_a_last_node_with_fewer_gpus_strands_too():
    """Three GPUs cannot all be too full here, the two of the last node can."""
    demands = [demand("a", 6_000, 2), demand("b", 5_000)]
    assert any_order_gpus(demands, Pool("L4", 6, 3)).may_strand == ()
    assert any_order_gpus(demands, Pool("L4", 5, 3)).may_strand == ("a", "b")


def test_what_fits_no_node_has_no_number():
    with pytest.raises(PlanError, match="variant a needs 10001 bp"):
        any_order_gpus([demand("a", 10_001)], Pool("L4", 1))
    with pytest.raises(PlanError, match="nodes of 1"):
        any_order_gpus([demand("a", 2 * GPU, gpus=2)], Pool("L4", 2))
