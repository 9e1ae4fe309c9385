"""One pool: whole GPUs of a node for tensor parallelism, shares beside each other on the rest."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.board import Board
from serve_app.planning.exact import NODE_BUDGET, fewest_bins
from serve_app.planning.first_fit import first_fit_decreasing
from serve_app.planning.fleet import Demand, Pool


@dataclass(frozen=True)
class Need:
    """GPUs that minimum replicas take, a bound from below, and whether the pool has them."""

    gpus: int
    lower_bound: int
    fits: bool
    bins: tuple[tuple[int, ...], ...]
    """Shares on each GPU that is shared."""
    teams: tuple[tuple[int, ...], ...]
    """Sizes of the teams on each node, as many nodes as they take."""
    seated: bool
    """Whether the pool has those nodes."""
    unseatable: bool
    """Whether it is proven that the teams find no place on the pool's nodes."""


def nodes_of(pool: Pool) -> list[int]:
    """GPUs of each node."""
    full, rest = divmod(pool.count, pool.gpus_per_node)
    return [pool.gpus_per_node] * full + [rest] * (rest > 0)


def need(pool: Pool, demands: Iterable[Demand], node_budget: int = NODE_BUDGET) -> Need:
    """What the minimum replicas of `demands`, each of which fits the pool's nodes, take of it.

    GPUs of teams and shared GPUs do not mix, and a shared GPU may be on any node: so the fewest
    GPUs are those of the teams and the fewest bins for the shares.
    """
    demands = tuple(demands)
    shares = [d.size_bp for d in demands if d.gpus == 1 for _ in range(d.minimum)]
    teams = [d.gpus for d in demands if d.gpus > 1 for _ in range(d.minimum)]
    shared = fewest_bins(shares, BP_TOTAL, node_budget)
    nodes, least_nodes = _seat(pool, teams, node_budget)
    seated = len(nodes) <= len(nodes_of(pool))
    gpus = sum(teams) + len(shared.bins)
    return Need(
        gpus=gpus,
        lower_bound=sum(teams) + shared.lower_bound,
        fits=seated and gpus <= pool.count,
        bins=shared.bins,
        teams=nodes,
        seated=seated,
        unseatable=least_nodes > len(nodes_of(pool)),
    )


def _seat(
    pool: Pool, teams: Sequence[int], node_budget: int
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Teams by node, on as many nodes as that takes, and a number of nodes that it does take."""
    nodes = nodes_of(pool)
    seats, homeless = first_fit_decreasing(teams, nodes)
    if not homeless:
        return tuple(tuple(seat) for seat in seats), 0
    absent = len(nodes) * pool.gpus_per_node - pool.count  # of the last node: as if taken
    taken = [absent] if absent else []
    packed = fewest_bins([*teams, *taken], pool.gpus_per_node, node_budget)
    ordered = sorted(packed.bins, key=lambda seat: absent in seat)
    if absent:
        last = list(ordered[-1])
        last.remove(absent)
        ordered[-1] = tuple(last)
    return tuple(ordered), packed.lower_bound


def fill_minimum(board: Board, demands: Sequence[Demand], planned: Need) -> dict[str, int]:
    """Put the minimum replicas on the board; how many of which variant found no place.

    What does not fit as planned is put first-fit decreasing.
    """
    teams = _fill_teams(board, demands, planned)
    waiting: dict[int, list[Demand]] = defaultdict(list)
    for demand in demands:
        if demand.gpus == 1:
            waiting[demand.size_bp] += [demand] * demand.minimum
    gpus = board.empty_gpus()
    contents: Sequence[Sequence[int]] = planned.bins
    if len(planned.bins) > len(gpus):
        sizes = [size for content in planned.bins for size in content]
        contents, _ = first_fit_decreasing(sizes, [BP_TOTAL] * len(gpus))
    for gpu, content in zip(gpus, contents, strict=False):
        for size in content:
            board.put(waiting[size].pop(), gpu)
    return teams + Counter(d.name for left in waiting.values() for d in left)


def _fill_teams(board: Board, demands: Sequence[Demand], planned: Need) -> Counter[str]:
    waiting: dict[int, list[Demand]] = defaultdict(list)
    for demand in demands:
        if demand.gpus > 1:
            waiting[demand.gpus] += [demand] * demand.minimum
    nodes = board.gpus_by_node()
    seats: Sequence[Sequence[int]] = planned.teams
    if not planned.seated:
        sizes = [size for size, teams in waiting.items() for _ in teams]
        seats, _ = first_fit_decreasing(sizes, [len(node) for node in nodes])
    for node, seat in zip(nodes, seats, strict=False):
        for size in seat:
            demand = waiting[size].pop()
            for _ in range(size):
                board.put(demand, node.pop(0))
    return Counter(d.name for left in waiting.values() for d in left)
