"""Which GPU type each variant goes to, at the lowest price (or with the fewest GPUs).

A variant's replicas are on one type: its Serve deployment has one fraction and one label selector.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.fill import need, nodes_of
from serve_app.planning.first_fit import first_fit_decreasing
from serve_app.planning.fleet import Demand, Pool
from serve_app.planning.type_costs import Options, bp_of, cost_bound, costs_of
from serve_app.planning.type_search import search_types

TRIED_SIZES = 60_000
"""Replicas that may be packed, over all trials, to better a first choice; some 0.2 s."""


@dataclass(frozen=True)
class Choice:
    """The pool number of each variant, and a bound from below on the cost of any choice."""

    pool_of: Mapping[str, int]
    lower_bound: int


def choose_types(options: Options, pools: Sequence[Pool]) -> Choice:
    """The cheapest choice of a pool for each variant that could be found.

    Two greedy choices are bettered by moving single variants; for few variants a search follows,
    and the choice is the best there is when its cost equals the bound.
    """
    costs, _ = costs_of(pools)
    busy = {name: by for name, by in options.items() if any(d.minimum for d in by.values())}
    if all(len(by) == 1 for by in busy.values()):
        pool_of = {name: next(iter(by)) for name, by in busy.items()}
        groups = _grouped(pool_of, busy)
        lower = sum(costs[i] * need(pools[i], group).lower_bound for i, group in groups.items())
    else:
        trial = _Trial(busy, pools, costs)
        tried = [trial.better(trial.greedy(weigh)) for weigh in (_alone, _share)]
        pool_of = min(tried, key=trial.score)
        lower = cost_bound(busy, pools, costs)
        found = search_types(busy, pools, costs, lower, pool_of)
        if found:
            pool_of, lower = found
    return Choice(_with_idle(pool_of, options, pools, costs), lower)


def _grouped(pool_of: Mapping[str, int], options: Options) -> dict[int, list[Demand]]:
    groups: dict[int, list[Demand]] = defaultdict(list)
    for name, pool in pool_of.items():
        groups[pool].append(options[name][pool])
    return groups


def _share(demand: Demand) -> int:
    """bp of the minimum replicas."""
    return bp_of([demand])


def _alone(demand: Demand) -> int:
    """bp of the GPUs that the minimum replicas take when nobody shares them."""
    per_gpu = BP_TOTAL // demand.share_bp
    return -(-demand.minimum // per_gpu) * demand.gpus * BP_TOTAL


class _Trial:
    """Choices of pools, judged by first-fit decreasing."""

    def __init__(self, options: Options, pools: Sequence[Pool], costs: Sequence[int]) -> None:
        self._options, self._pools, self._costs = options, pools, costs
        self._sizes_left = TRIED_SIZES

    def greedy(self, weigh: Callable[[Demand], int]) -> dict[str, int]:
        """Cheapest pool first while it has room, for those first who lose most by the next one."""
        costs = self._costs
        ranked = {
            name: sorted((costs[i] * weigh(demand), i) for i, demand in by_pool.items())
            for name, by_pool in self._options.items()
        }
        free = [pool.count * BP_TOTAL for pool in self._pools]
        chosen = {}
        for name in sorted(ranked, key=lambda name: (-_regret(ranked[name]), name)):
            demands = self._options[name]
            pool = next(
                (i for _, i in ranked[name] if free[i] >= weigh(demands[i])),
                max(demands, key=lambda i: free[i]),
            )
            free[pool] -= weigh(demands[pool])
            chosen[name] = pool
        return chosen

    def score(self, pool_of: Mapping[str, int]) -> tuple[int, int]:
        """What finds no place, then the cost; less is better."""
        groups = _grouped(pool_of, self._options)
        scores = [self._score(i, group) for i, group in groups.items()]
        return sum(s[0] for s in scores), sum(s[1] for s in scores)

    def _score(self, pool: int, demands: Iterable[Demand]) -> tuple[int, int]:
        demands = tuple(demands)
        sizes = [d.size_bp for d in demands if d.gpus == 1 for _ in range(d.minimum)]
        teams = [d.gpus for d in demands if d.gpus > 1 for _ in range(d.minimum)]
        self._sizes_left -= len(sizes) + len(teams)
        bins, _ = first_fit_decreasing(sizes, [BP_TOTAL] * len(sizes))
        gpus = sum(teams) + sum(1 for content in bins if content)
        nodes = nodes_of(self._pools[pool]) if teams else []
        _, homeless = first_fit_decreasing(teams, nodes)
        lacking = max(gpus - self._pools[pool].count, sum(homeless), 0)
        return lacking, self._costs[pool] * gpus

    def better(self, pool_of: dict[str, int]) -> dict[str, int]:
        """Move one variant at a time, as long as that helps and trials are left."""
        groups = _grouped(pool_of, self._options)
        scores = {i: self._score(i, groups[i]) for i in range(len(self._pools))}
        moved = True
        while moved and self._sizes_left > 0:
            moved = False
            for name, by_pool in self._options.items():
                for target in by_pool:
                    source = pool_of[name]
                    if target == source or self._sizes_left <= 0:
                        continue
                    left = [d for d in groups[source] if d.name != name]
                    joined = [*groups[target], by_pool[target]]
                    new = {source: self._score(source, left), target: self._score(target, joined)}
                    if _sum(new.values()) < _sum(scores[i] for i in new):
                        pool_of[name], moved = target, True
                        groups[source], groups[target] = left, joined
                        scores |= new
        return pool_of


def _regret(ranked: Sequence[tuple[int, int]]) -> int:
    return ranked[1][0] - ranked[0][0] if len(ranked) > 1 else 1 << 62


def _sum(scores: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(scores)
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _with_idle(
    pool_of: Mapping[str, int], options: Options, pools: Sequence[Pool], costs: Sequence[int]
) -> dict[str, int]:
    """Also the variants without minimum replicas: each where most of its maximum has room."""
    chosen = dict(pool_of)
    groups = _grouped(pool_of, options)
    free = [pool.count * BP_TOTAL - bp_of(groups[i]) for i, pool in enumerate(pools)]
    for name, by_pool in options.items():
        if name in chosen:
            continue
        room = {i: min(d.maximum, free[i] // (d.gpus * d.share_bp)) for i, d in by_pool.items()}
        best = min(by_pool, key=lambda i: (-room[i], costs[i] * by_pool[i].size_bp, i))
        free[best] -= room[best] * by_pool[best].gpus * by_pool[best].share_bp
        chosen[name] = best
    return chosen
