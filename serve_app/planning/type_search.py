"""The cheapest choice of GPU types, proven for few variants."""

from collections.abc import Mapping, Sequence
from math import inf

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.bounds import fewest_bins_bound
from serve_app.planning.fill import Need, need
from serve_app.planning.fleet import Demand, Pool
from serve_app.planning.type_costs import Options, bp_of

SEARCHED_VARIANTS = 16
STEPS = 5_000
BIN_BUDGET = 2_000
"""More variants are not searched; after so many steps the search ends without a proof."""


def search_types(
    options: Options,
    pools: Sequence[Pool],
    costs: Sequence[int],
    lower_bound: int,
    start: Mapping[str, int],
) -> tuple[dict[str, int], int] | None:
    """The best choice from `start` on and a bound on the cost of any; None if that brought nothing.

    Where the pools cannot hold all minimum replicas there is no choice to be found.
    """
    if len(options) > SEARCHED_VARIANTS:
        return None
    search = _Search(options, pools, costs)
    search.offer(start)
    ended = True
    try:
        search.run()
    except _StepsSpentError:
        ended = False
    if search.best is None:
        return None
    proven = min(search.best_cost, search.open_cost) if ended else 0
    return search.best, int(max(lower_bound, proven))


class _StepsSpentError(Exception):
    pass


class _Search:
    """Variants one after the other, dearest first, on each of their pools."""

    def __init__(self, options: Options, pools: Sequence[Pool], costs: Sequence[int]) -> None:
        self._pools, self._costs = pools, costs
        cheapest = {
            name: min(costs[i] * bp_of([d]) for i, d in by_pool.items())
            for name, by_pool in options.items()
        }
        self._names = sorted(options, key=lambda name: (-cheapest[name], name))
        self._options = options
        self._to_come = [sum(cheapest[n] for n in self._names[i:]) for i in range(len(options) + 1)]
        self._groups: list[list[Demand]] = [[] for _ in pools]
        self._needs: dict[tuple[int, frozenset[str]], Need] = {}
        self._bounds: dict[tuple[int, frozenset[str]], int] = {}
        self._steps_left = STEPS
        self.best: dict[str, int] | None = None
        self.best_cost: float = inf
        self.open_cost: float = inf
        """What a choice might cost that could be neither packed nor ruled out."""

    def offer(self, pool_of: Mapping[str, int]) -> None:
        """A first choice; taken if it fits."""
        for name, pool in pool_of.items():
            self._groups[pool].append(self._options[name][pool])
        self._judge(dict(pool_of))
        self._groups = [[] for _ in self._pools]

    def run(self) -> None:
        """Search all choices. Raises _StepsSpentError."""
        self._descend(0, {})

    def _descend(self, depth: int, pool_of: dict[str, int]) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise _StepsSpentError
        if self._least_cost(depth) >= self.best_cost:
            return
        if depth == len(self._names):
            self._judge(pool_of)
            return
        name = self._names[depth]
        by_pool = self._options[name]
        for pool in sorted(by_pool, key=lambda i: (self._costs[i] * bp_of([by_pool[i]]), i)):
            self._groups[pool].append(by_pool[pool])
            self._descend(depth + 1, {**pool_of, name: pool})
            self._groups[pool].pop()

    def _least_cost(self, depth: int) -> float:
        """GPUs that are needed already, and what is still to come less the room on them."""
        known, room = 0, 0
        for pool, group in enumerate(self._groups):
            gpus = self._fewest(pool, group)
            if gpus > self._pools[pool].count:
                return inf
            known += self._costs[pool] * gpus
            room += self._costs[pool] * (gpus * BP_TOTAL - bp_of(group))
        return known - (-max(0, self._to_come[depth] - room) // BP_TOTAL)

    def _fewest(self, pool: int, group: Sequence[Demand]) -> int:
        key = (pool, frozenset(d.name for d in group))
        if key not in self._bounds:
            sizes = [d.size_bp for d in group if d.gpus == 1 for _ in range(d.minimum)]
            whole = sum(d.gpus * d.minimum for d in group if d.gpus > 1)
            self._bounds[key] = whole + fewest_bins_bound(sizes, BP_TOTAL)
        return self._bounds[key]

    def _judge(self, pool_of: dict[str, int]) -> None:
        needs = [self._need(pool, group) for pool, group in enumerate(self._groups)]
        cost = sum(c * n.gpus for c, n in zip(self._costs, needs, strict=True))
        least = sum(c * n.lower_bound for c, n in zip(self._costs, needs, strict=True))
        fits = all(n.fits for n in needs)
        if fits and cost < self.best_cost:
            self.best, self.best_cost = pool_of, cost
        impossible = any(
            n.lower_bound > pool.count or n.unseatable
            for n, pool in zip(needs, self._pools, strict=True)
        )
        if not impossible and not (fits and least == cost):
            self.open_cost = min(self.open_cost, least)

    def _need(self, pool: int, group: Sequence[Demand]) -> Need:
        key = (pool, frozenset(d.name for d in group))
        if key not in self._needs:
            self._needs[key] = need(self._pools[pool], group, BIN_BUDGET)
        return self._needs[key]
