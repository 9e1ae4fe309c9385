"""Other types, more replicas, room for an update."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import PlanError
from serve_app.planning.packing import Demand, Pool, pack
from serve_app.planning.whatif import cheapest, how_many_more, room_for_each, update_headroom
from tests.unit.test_packing import DEMANDS, SIZES, demand

GPU = 10_000


def test_the_cheapest_type_comes_first():
    demands = [demand("a", GPU, 4)]
    sizes = {"a": {"L4": 9_000, "H100": 2_500}}
    pools = [Pool("H100", 1, 1, 5.0), Pool("L4", 1, 1, 1.0), Pool("T4", 1, 1, 0.3)]
    l4, h100, t4 = cheapest(demands, pools, sizes)
    assert (l4.gpu, l4.gpus, l4.price_usd_per_hour) == ("L4", 4, 4.0)
    assert (h100.gpu, h100.gpus, h100.price_usd_per_hour) == ("H100", 1, 5.0)
    assert (t4.gpu, t4.gpus, t4.price_usd_per_hour) == ("T4", None, None)
    assert t4.reason == "a: T4 cannot run it"


def test_types_without_a_price_follow_those_with_one():
    demands = [demand("a", GPU, 4)]
    sizes = {"a": {"L4": 9_000, "H100": 2_500}}
    costs = cheapest(demands, [Pool("L4", 1, 1, 1.0), Pool("H100", 1)], sizes)
    assert [(c.gpu, c.gpus, c.price_usd_per_hour) for c in costs] == [
        ("L4", 4, 4.0),
        ("H100", 1, None),
    ]


def test_teams_need_wide_nodes():
    demands = [demand("team", 2 * GPU, 2, gpus=2)]
    wide, narrow = cheapest(demands, [Pool("L4", 0, 1, 1.0), Pool("H100", 0, 2, 9.0)])
    assert (wide.gpu, wide.gpus, wide.price_usd_per_hour) == ("H100", 4, 36.0)
    assert narrow.gpus is None
    assert "2 GPUs of one node" in narrow.reason


@given(st.lists(SIZES, max_size=8), SIZES, st.integers(0, 9))
@settings(max_examples=100)
def test_as_many_more_as_said_fit_and_not_one_more(sizes, size, gpus):
    demands = [demand(f"v{i}", s) for i, s in enumerate(sizes)]
    packing = pack(demands, [Pool("L4", gpus)])
    extra = Demand("extra", size, minimum=0, maximum=99_999)
    more = how_many_more(packing, extra)
    free = [GPU] * (gpus - len(packing.placements)) + [GPU - p.used_bp for p in packing.placements]
    assert more == sum(room // size for room in free)
    if not packing.unplaced:
        assert pack([*demands, extra], [Pool("L4", gpus)]).replicas()["extra"] == more


def test_more_of_a_team_counts_whole_nodes():
    packing = pack([demand("a", 100)], [Pool("L4", 7, 2)])
    assert how_many_more(packing, demand("team", 2 * GPU, gpus=2)) == 3  # "a" is on the odd GPU
    assert how_many_more(packing, demand("a", 100)) == 6 * 100 + 99


@given(DEMANDS, st.integers(0, 9), st.sampled_from([1, 2, 4]))
def test_room_for_each_is_what_each_alone_is_told(demands, gpus, width):
    packing = pack(demands, [Pool("L4", gpus, gpus_per_node=width)])
    homes = [d for use in packing.types for d in use.demands]
    assert room_for_each(packing) == {d.name: how_many_more(packing, d) for d in homes}


def test_more_on_which_type():
    packing = pack([demand("a", 5_000)], [Pool("L4", 1, 1, 1.0), Pool("H100", 2, 1, 5.0)])
    assert how_many_more(packing, demand("a", 5_000)) == 1
    assert how_many_more(packing, demand("b", 5_000), "H100") == 4
    with pytest.raises(PlanError, match="name one of H100, L4"):
        how_many_more(packing, demand("b", 5_000))
    with pytest.raises(PlanError, match="B200 was named"):
        how_many_more(packing, demand("b", 5_000), "B200")


def test_room_for_an_update_that_starts_first():
    demands = [demand("a", 3_000, 2), demand("b", 2_500), demand("c", 9_000), demand("d", 9_900)]
    packing = pack(demands, [Pool("L4", 3)])
    a, b, c, d = sorted(update_headroom(packing), key=lambda h: h.name)
    assert (a.replicas, a.extra, a.max_surge_percent, a.start_first) == (2, 0, 0, False)
    assert not a.interrupts  # one of two still serves
    assert (b.extra, b.start_first, b.interrupts) == (0, False, True)
    assert c.interrupts and d.interrupts


def test_the_surge_in_percent_stays_within_the_room():
    """Serve rounds up: 34 % of 3 replicas are 2."""
    packing = pack([demand("a", 2_500, 3)], [Pool("L4", 1)])
    (a,) = update_headroom(packing)
    assert (a.extra, a.max_surge_percent) == (1, 33)
    assert -(-a.max_surge_percent * a.replicas // 100) == a.extra
    (all_of_them,) = update_headroom(pack([demand("a", 2_500, 3)], [Pool("L4", 2)]))
    assert (all_of_them.extra, all_of_them.max_surge_percent) == (3, 100)


def test_headroom_of_teams_and_of_nothing():
    packing = pack(
        [demand("team", 2 * GPU, gpus=2), Demand("off", 100, minimum=0, maximum=0)],
        [Pool("L4", 4, 2)],
    )
    (team,) = update_headroom(packing)
    assert (team.name, team.extra, team.start_first) == ("team", 1, True)
