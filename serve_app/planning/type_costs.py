"""Costs of GPUs as integers, and a bound on the cost of any choice of GPU types."""

from collections.abc import Iterable, Mapping, Sequence

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.fleet import Demand, Pool

Options = Mapping[str, Mapping[int, Demand]]
"""Variant name to pool number to what it demands there; pools it cannot run on are absent."""

THRESHOLDS = 24
ROUNDS = 20


def costs_of(pools: Sequence[Pool]) -> tuple[list[int], bool]:
    """Cost of one GPU of each pool: micro-USD per hour, or 1 where any price is missing.

    The second value says whether these are prices.
    """
    prices = [pool.price_usd_per_hour for pool in pools]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return [1] * len(prices), False
    return [round(price * 1_000_000) for price in known], True


def cost_bound(options: Options, pools: Sequence[Pool], costs: Sequence[int]) -> int:
    """No choice of types costs less, however replicas could be cut to fill GPUs.

    Linear relaxation with a size function that no GPU can hold more than 10,000 of (Martello and
    Toth's: sizes below a threshold count nothing, those above 10,000 less the threshold a whole
    GPU), the best of several thresholds; then prices on the GPUs that a pool lacks (Lagrange).
    """
    sizes = sorted({d.size_bp for by in options.values() for d in by.values() if d.gpus == 1})
    small = [size for size in sizes if size <= BP_TOTAL // 2]
    step = max(1, len(small) // THRESHOLDS)
    best, threshold = max(
        (_relaxed(options, costs, t)[0], -t) for t in {0, *small[::step], BP_TOTAL // 2}
    )
    return max(best, _priced(options, pools, costs, -threshold))


def _relaxed(options: Options, costs: Sequence[int], threshold: int) -> tuple[int, dict[int, int]]:
    """The relaxation's cost, and the bp that it uses of each pool."""
    total, used = 0, dict.fromkeys(range(len(costs)), 0)
    for by_pool in options.values():
        parts = ((costs[i] * _weighed(d, threshold), i) for i, d in by_pool.items())
        cost, pool = min(parts)
        total += cost
        used[pool] += _weighed(by_pool[pool], threshold)
    return -(-total // BP_TOTAL), used


def _weighed(demand: Demand, threshold: int) -> int:
    if demand.gpus > 1 or demand.size_bp > BP_TOTAL - threshold:
        return demand.minimum * demand.gpus * BP_TOTAL
    return demand.minimum * demand.size_bp if demand.size_bp >= threshold else 0


def _priced(options: Options, pools: Sequence[Pool], costs: Sequence[int], threshold: int) -> int:
    """The relaxation where GPUs of a pool that is asked for too much cost more, less that extra."""
    best, extra = 0, [0] * len(pools)
    for turn in range(1, ROUNDS + 1):
        raised = [cost + more for cost, more in zip(costs, extra, strict=True)]
        total, used = _relaxed(options, raised, threshold)
        paid = sum(more * pool.count for more, pool in zip(extra, pools, strict=True))
        best = max(best, total - paid)
        for i, pool in enumerate(pools):
            have = max(pool.count * BP_TOTAL, 1)
            step = max(costs[i], 1) * (used[i] - have) // (have * turn)
            extra[i] = max(0, extra[i] + min(step, max(costs[i], 1) * 4))
    return best


def bp_of(demands: Iterable[Demand]) -> int:
    """What the minimum replicas take together."""
    return sum(d.minimum * d.gpus * d.share_bp for d in demands)
