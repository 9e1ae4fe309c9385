"""How a cell is shared out: worker `i` of `W` takes the arrivals `i`, `i + W`, `i + 2 W`, ..."""

from collections.abc import Sequence
from dataclasses import replace

from loadtests.drive.messages import Shard
from loadtests.plan.request import Cell
from serve_app.domain.errors import ConfigError


def shards(
    cell: Cell, bodies: Sequence[bytes], n_workers: int, in_flight_cap: int, timeout_s: float
) -> list[Shard]:
    """One shard per worker; `bodies` has one entry per request of the cell.

    In a closed loop each worker takes its share of the users, who take its share of the requests
    over and over; the plan has more of those than there are workers.
    """
    result = []
    for worker in range(n_workers):
        part = slice(worker, None, n_workers)
        users = cell.concurrency
        mine = replace(
            cell,
            requests=cell.requests[part],
            concurrency=None if users is None else share(users, worker, n_workers),
        )
        result.append(
            Shard(
                cell=mine,
                bodies=tuple(bodies[part]),
                worker=worker,
                n_workers=n_workers,
                in_flight_cap=share(in_flight_cap, worker, n_workers),
                timeout_s=timeout_s,
            )
        )
    return result


def share(total: int, worker: int, n_workers: int) -> int:
    """Worker `worker`'s part of `total` things; the parts differ by one at most."""
    return total // n_workers + (worker < total % n_workers)


def check_cap(in_flight_cap: int, n_workers: int) -> None:
    """Raise ConfigError if a worker would be left without one request in flight."""
    if in_flight_cap < n_workers:
        raise ConfigError(
            f"need in_flight_cap of one or more per load process, have {in_flight_cap} for "
            f"{n_workers}: raise in_flight_cap or lower --processes"
        )
