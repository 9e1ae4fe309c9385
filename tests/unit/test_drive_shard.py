"""Sharing a cell out loses nothing, doubles nothing, and needs nothing that is not sent."""

import msgspec
import pytest

from loadtests.drive.messages import Prepare, Shard, ToWorker
from loadtests.drive.shard import check_cap, shards, share
from serve_app.domain.errors import ConfigError
from tests.fakes.load_cell import a_cell


def shared(n: int, n_workers: int, cap: int = 100, concurrency: int | None = None) -> list[Shard]:
    cell = a_cell(n, concurrency)
    bodies = [b"%d" % i for i in range(n)]
    return shards(cell, bodies, n_workers, cap, 5.0)


@pytest.mark.parametrize(("n", "n_workers"), [(0, 2), (1, 3), (7, 1), (7, 3), (9, 3)])
def test_every_arrival_goes_to_one_worker_with_its_body_and_its_place(n, n_workers):
    placed = {}
    for shard in shared(n, n_workers):
        assert len(shard.bodies) == len(shard.cell.requests)
        for nth, (request, body) in enumerate(zip(shard.cell.requests, shard.bodies, strict=True)):
            index = shard.index(nth)
            assert index not in placed
            assert index % n_workers == shard.worker
            placed[index] = (request.max_tokens - 1, int(body))
    assert placed == {i: (i, i) for i in range(n)}


@pytest.mark.parametrize(("total", "n_workers"), [(128, 1), (128, 3), (2, 2), (7, 4)])
def test_shares_add_up_and_differ_by_one_at_most(total, n_workers):
    parts = [share(total, worker, n_workers) for worker in range(n_workers)]
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


def test_the_cap_and_the_users_are_shared():
    assert [shard.in_flight_cap for shard in shared(9, 2, cap=5)] == [3, 2]
    assert [shard.cell.concurrency for shard in shared(9, 2, concurrency=3)] == [2, 1]
    assert [shard.cell.concurrency for shard in shared(9, 2)] == [None, None]


def test_a_worker_needs_a_request_in_flight():
    check_cap(2, 2)
    with pytest.raises(ConfigError, match="have 1 for 2"):
        check_cap(1, 2)


def test_a_shard_comes_through_the_wire_as_it_was():
    (shard,) = shared(3, 1)
    wire = msgspec.msgpack.encode(Prepare(shard))
    assert msgspec.msgpack.decode(wire, type=ToWorker) == Prepare(shard)
    assert msgspec.msgpack.decode(wire, type=ToWorker).shard.cell.requests[2].input_tokens == 7
