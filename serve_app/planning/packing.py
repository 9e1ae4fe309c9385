"""Replicas onto GPUs: the fewest, or the cheapest, that hold all minimum replicas.

Up to 200 replicas of a type are searched for the best packing, within a budget; beyond, or where
the budget ends, the packing is first-fit decreasing (at most 11/9 of the best, plus 6/9) and the
gap to a lower bound is stated. What room is left goes to more replicas, up to the maxima.
"""

from collections import Counter
from collections.abc import Sequence

from serve_app.domain.errors import PlanError
from serve_app.planning.board import Board, raise_replicas
from serve_app.planning.fill import Need, fill_minimum, need, nodes_of
from serve_app.planning.fleet import Demand, Packing, Placement, Pool, TypeUse, Unplaced
from serve_app.planning.heterogeneous import choose_types
from serve_app.planning.options import SizesByType, options_of
from serve_app.planning.type_costs import costs_of

__all__ = ["Demand", "Packing", "Placement", "Pool", "Unplaced", "pack"]


def pack(
    demands: Sequence[Demand], pools: Sequence[Pool], sizes: SizesByType | None = None
) -> Packing:
    """Place all minimum replicas, then as many more as have room.

    `sizes` gives the bp of one replica by variant and GPU type, a type that is absent cannot run
    the variant; without it `size_bp` holds on every pool. What finds no place is in the result.
    Raises PlanError for two demands or two pools of one name.
    """
    _require_unique("variant", [demand.name for demand in demands])
    _require_unique("GPU type", [pool.gpu for pool in pools])
    options, impossible = options_of(demands, pools, sizes)
    choice = choose_types(options, pools)
    groups: list[list[Demand]] = [[] for _ in pools]
    for name, by_pool in options.items():
        groups[choice.pool_of[name]].append(by_pool[choice.pool_of[name]])
    costs, priced = costs_of(pools)
    cost, placements, homeless, types = 0, [], list(impossible), []
    for pool, group, gpu_cost in zip(pools, groups, costs, strict=True):
        board, planned = Board(pool), need(pool, group)
        lacking = fill_minimum(board, group, planned)
        raise_replicas(board, [d for d in group if d.name not in lacking])
        cost += gpu_cost * planned.gpus
        placements += board.placements()
        homeless += [Unplaced(*item, _shortage(pool, planned)) for item in lacking.items()]
        types.append(TypeUse(pool, tuple(group), planned.gpus, planned.lower_bound))
    return Packing(
        types=tuple(types),
        placements=tuple(placements),
        unplaced=tuple(homeless),
        price_usd_per_hour=cost / 1e6 if priced else None,
        lower_bound_usd_per_hour=min(choice.lower_bound, cost) / 1e6 if priced else None,
        exact=cost <= choice.lower_bound,
    )


def _require_unique(kind: str, names: Sequence[str]) -> None:
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        raise PlanError(f"{kind} {', '.join(twice)} is given more than once: give each one time")


def _shortage(pool: Pool, planned: Need) -> str:
    if not planned.seated:
        return (
            f"the variants over several GPUs take {len(planned.teams)} nodes of "
            f"{pool.gpus_per_node} {pool.gpu}, and there are {len(nodes_of(pool))}: add nodes"
        )
    return (
        f"the minimum replicas take {planned.gpus} {pool.gpu} (at least {planned.lower_bound}), "
        f"and there are {pool.count}: add GPUs, or lower minimum replicas or concurrency"
    )
