"""Who starts first: the largest, but nobody is passed over for ever."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.node.tickets import Ticket, ahead_of, post_ticket, posted_tickets, start_order

OVERTAKE_S = 60.0


def ticket(need: int, arrived_s: float = 0.0, pid: int = 1, devices=("GPU-a",)) -> Ticket:
    return Ticket(f"v{need}", pid, need, tuple(devices), arrived_s)


def names(tickets) -> list[str]:
    return [entry.variant for entry in tickets]


def test_the_largest_goes_first_whenever_it_came():
    waiting = [ticket(2, 0.0), ticket(9, 30.0), ticket(5, 10.0)]
    assert names(start_order(waiting, OVERTAKE_S)) == ["v9", "v5", "v2"]


def test_equals_go_in_the_order_in_which_they_came():
    waiting = [ticket(5, 1.0, pid=3), ticket(5, 0.0, pid=9), ticket(5, 1.0, pid=2)]
    assert [entry.pid for entry in start_order(waiting, OVERTAKE_S)] == [9, 2, 3]


def test_who_has_waited_long_is_not_overtaken_by_one_that_comes_back_again_and_again():
    small, retry = ticket(2, 0.0), ticket(9, 60.1)
    assert names(start_order([small, retry], OVERTAKE_S)) == ["v2", "v9"]
    assert names(start_order([small, ticket(9, 60.0)], OVERTAKE_S)) == ["v9", "v2"]


tickets = st.lists(
    st.builds(
        Ticket,
        variant=st.just("v"),
        pid=st.integers(1, 50),
        need_bytes=st.integers(1, 5),
        devices=st.sets(st.sampled_from("abc"), min_size=1).map(lambda keys: tuple(sorted(keys))),
        arrived_s=st.floats(0, 300),
    ),
    unique=True,
    max_size=8,
)


@given(tickets, st.randoms())
def test_the_order_is_one_for_all_who_look(waiting, random):
    order = start_order(waiting, OVERTAKE_S)
    assert sorted(order, key=repr) == sorted(waiting, key=repr)
    random.shuffle(waiting)
    assert start_order(waiting, OVERTAKE_S) == order
    for position, later in enumerate(order):
        for earlier in order[:position]:
            assert earlier.arrived_s <= later.arrived_s + OVERTAKE_S


@given(tickets)
def test_somebody_may_always_start(waiting):
    """No ring of waiters, whatever devices they share."""
    free = [entry for entry in waiting if not ahead_of(entry, waiting, OVERTAKE_S)]
    assert bool(free) == bool(waiting)
    taken = [key for entry in free for key in entry.devices]
    assert len(taken) == len(set(taken))


def test_only_those_who_want_the_same_device_are_ahead():
    mine = ticket(1, devices=["GPU-a"])
    both, other = ticket(5, devices=["GPU-a", "GPU-b"]), ticket(9, devices=["GPU-b"])
    assert names(ahead_of(mine, [mine, both, other], OVERTAKE_S)) == ["v5"]
    assert ahead_of(other, [mine, both, other], OVERTAKE_S) == []


def test_a_ticket_is_posted_until_it_is_withdrawn(tmp_path):
    folder = tmp_path / "tickets"
    first, second = ticket(1, 0.1), ticket(2, 0.2)
    lock = post_ticket(folder, first)
    post_ticket(folder, second).release(unlink=True)
    assert posted_tickets(folder) == [first]
    lock.release(unlink=True)
    assert posted_tickets(folder) == []
    assert list(folder.iterdir()) == []


def test_a_ticket_that_nobody_holds_is_not_counted_and_cleared_away(tmp_path):
    lock = post_ticket(tmp_path, ticket(1))
    lock.release()  # as the kernel does for one that died: the file stays
    assert len(list(tmp_path.iterdir())) == 1
    assert posted_tickets(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
