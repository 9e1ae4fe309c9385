"""What if: another GPU type, more replicas, an update that starts the new before it stops the old.

These answers are of one packing; whether Ray places replicas like that is any_order's question.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.domain.errors import PlanError
from serve_app.domain.units import BP_TOTAL
from serve_app.planning.fleet import Demand, Packing, Pool
from serve_app.planning.options import SizesByType
from serve_app.planning.packing import pack


@dataclass(frozen=True)
class TypeCost:
    """What it takes to run all minimum replicas on one GPU type alone.

    `gpus` is None where that is impossible, and `reason` says why. `price_usd_per_hour` is also
    None where the type has no price.
    """

    gpu: str
    gpus: int | None
    lower_bound_gpus: int
    price_usd_per_hour: float | None
    reason: str | None


def cheapest(
    demands: Sequence[Demand], pools: Sequence[Pool], sizes: SizesByType | None = None
) -> tuple[TypeCost, ...]:
    """Every GPU type with what it takes, however many there are of it, the cheapest first.

    Types without a price follow, by number of GPUs; impossible ones come last.
    """

    def rank(cost: TypeCost) -> tuple[bool, bool, float, str]:
        price = cost.price_usd_per_hour
        value = cost.gpus or 0 if price is None else price
        return cost.gpus is None, price is None, value, cost.gpu

    return tuple(sorted((_on_one_type(demands, pool, sizes) for pool in pools), key=rank))


def _on_one_type(demands: Sequence[Demand], pool: Pool, sizes: SizesByType | None) -> TypeCost:
    ample = sum(d.minimum for d in demands) * pool.gpus_per_node
    only_minimum = [replace(d, maximum=d.minimum) for d in demands]
    packing = pack(only_minimum, [replace(pool, count=ample)], sizes)
    if packing.unplaced:
        why = "; ".join(f"{u.name}: {u.reason}" for u in packing.unplaced)
        return TypeCost(pool.gpu, None, packing.lower_bound_gpus, None, why)
    return TypeCost(
        pool.gpu, packing.needed_gpus, packing.lower_bound_gpus, packing.price_usd_per_hour, None
    )


def how_many_more(packing: Packing, demand: Demand, gpu: str | None = None) -> int:
    """Replicas of `demand` that fit beside what is placed, on `gpu` or the type it already is on.

    Its size is taken as given. Raises PlanError where the type is not clear.
    """
    pools = {use.pool.gpu: use.pool for use in packing.types}
    home = packing.home(demand.name)
    name = gpu or (home[0].gpu if home else next(iter(pools)) if len(pools) == 1 else None)
    if name not in pools:
        raise PlanError(
            f"variant {demand.name} is on no GPU type of this packing, and {gpu or 'no type'} was "
            f"named: name one of {', '.join(sorted(pools))}"
        )
    return _fitting(_free_bp(packing, pools[name]), pools[name], demand)


def room_for_each(packing: Packing) -> dict[str, int]:
    """As `how_many_more`, for every variant of the packing, each as if it alone got the room."""
    room = {}
    for use in packing.types:
        free = _free_bp(packing, use.pool)
        kinds = Counter(free)
        for demand in use.demands:
            room[demand.name] = (
                sum(bp // demand.size_bp * gpus for bp, gpus in kinds.items())
                if demand.gpus == 1
                else _fitting(free, use.pool, demand)
            )
    return room


def _fitting(free: Sequence[int], pool: Pool, demand: Demand) -> int:
    if demand.gpus == 1:
        return sum(bp // demand.size_bp for bp in free)
    nodes = (free[i : i + pool.gpus_per_node] for i in range(0, len(free), pool.gpus_per_node))
    return sum(node.count(BP_TOTAL) // demand.gpus for node in nodes)


def _free_bp(packing: Packing, pool: Pool) -> list[int]:
    """Free bp of each of the pool's GPUs."""
    free = [BP_TOTAL] * pool.count
    for placed in packing.placements:
        if placed.gpu == pool.gpu:
            free[placed.node * pool.gpus_per_node + placed.index] -= placed.used_bp
    return free


@dataclass(frozen=True)
class UpdateHeadroom:
    """How a variant of `replicas` can be updated.

    `extra` more replicas have room while the old ones run. `max_surge_percent` is the largest value
    of that Serve setting that stays within them: above 0 Serve starts new replicas before it stops
    old ones. At 0, which is also Serve's default, it stops first: `interrupts` if none is left.
    """

    name: str
    replicas: int
    extra: int
    max_surge_percent: int

    @property
    def start_first(self) -> bool:
        """Whether one replica more has room, so that none must stop first."""
        return self.max_surge_percent > 0

    @property
    def interrupts(self) -> bool:
        """Whether an update leaves the variant without a replica for a while."""
        return not self.start_first and self.replicas == 1


def update_headroom(packing: Packing) -> tuple[UpdateHeadroom, ...]:
    """Each variant with replicas, updated alone.

    Serve rounds the surge up to whole replicas, and starts a share of the replicas of
    `rolling_update_percentage` (20 %) at a time (Ray 2.60, serve/_private/deployment_state.py,
    `_surge_replicas_to_start`, `_rollout_size`).
    """
    replicas = packing.replicas()
    found = []
    for use in packing.types:
        free = _free_bp(packing, use.pool)
        largest_first = sorted(Counter(free).items(), reverse=True)
        for demand in use.demands:
            running = replicas[demand.name]
            if not running:
                continue
            if demand.gpus > 1:
                extra = min(running, _fitting(free, use.pool, demand))
            else:
                extra = _up_to(running, largest_first, demand.size_bp)
            surge = min(100, 100 * extra // running)
            found.append(UpdateHeadroom(demand.name, running, extra, surge))
    return tuple(found)


def _up_to(most: int, free: Sequence[tuple[int, int]], size_bp: int) -> int:
    fitting = 0
    for free_bp, gpus in free:
        if free_bp < size_bp or fitting >= most:
            break
        fitting += free_bp // size_bp * gpus
    return min(most, fitting)
