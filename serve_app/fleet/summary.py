"""What follows from a plan, in sentences: GPUs, guarantees, headroom; and what is wrong with it."""

from collections.abc import Iterator
from dataclasses import replace

from serve_app.domain.errors import PlanError
from serve_app.fleet.plan import (
    FleetPlan,
    FleetVariant,
    demands_and_sizes,
    open_pool,
    plan_fleet,
)
from serve_app.planning.any_order import any_order_gpus
from serve_app.planning.fleet import TypeUse
from serve_app.planning.plan import DEFAULT_CONCURRENCY
from serve_app.planning.whatif import cheapest, room_for_each, update_headroom

_MOST_NAMED = 8
_SHRINK_STEPS = 20
_MOST_SHRUNK = 100
"""Variants up to which a smaller concurrency is searched for when they do not fit."""


def summary_lines(fleet: FleetPlan) -> Iterator[str]:
    """What the table does not say."""
    for use in fleet.packing.types:
        if use.demands:
            yield _gpus(use)
            yield from _any_order(use)
    price, floor = fleet.packing.price_usd_per_hour, fleet.packing.lower_bound_usd_per_hour
    if price is not None and floor is not None:
        proof = "proven cheapest" if fleet.packing.exact else f"at least {floor:,.2f} in any case"
        yield f"price of the minimum replicas: {price:,.2f} USD per hour ({proof})"
    more = [f"{name} +{count:,}" for name, count in room_for_each(fleet.packing).items() if count]
    yield f"each alone still has room for: {_named(more) or 'no further replica of any variant'}"
    yield from _updates(fleet)
    for each in fleet.variants[:_MOST_NAMED]:
        for gpu, note in each.notes.items():
            yield f"note: {each.name} on {gpu}: {note}"


def _gpus(use: TypeUse) -> str:
    proof = (
        "proven fewest"
        if use.needed_gpus == use.lower_bound_gpus
        else f"lower bound {use.lower_bound_gpus:,}"
    )
    return (
        f"{use.pool.gpu}: the minimum replicas need {_count(use.needed_gpus)} ({proof}), "
        f"{use.pool.count:,} counted"
    )


def _any_order(use: TypeUse) -> Iterator[str]:
    """Ray places replicas as they come and moves none, so the best packing is no promise."""
    try:
        at_start = any_order_gpus(use.demands, use.pool)
        at_most = any_order_gpus(
            use.demands, use.pool, {demand.name: demand.maximum for demand in use.demands}
        )
    except PlanError:
        return  # what fits no node is reported as unplaced
    if not at_start.enough:
        yield (
            f"  Ray places replicas as they come: {at_start.gpus:,} GPUs hold them in any order, "
            f"with {use.needed_gpus:,} the last may have to wait"
        )
    elif at_start.guaranteed:
        yield "  in whatever order Ray starts them, each finds a place"
    if at_most.gpus > use.pool.count:
        yield f"  all at their maximum replicas: {at_most.gpus:,} GPUs hold them in any order"
    if at_start.may_strand:
        yield (
            f"  on nodes of several GPUs Ray may hold back {_named(at_start.may_strand)} beside a "
            "free GPU (ray #52133): nodes of one GPU have no such case"
        )


def _updates(fleet: FleetPlan) -> Iterator[str]:
    by_surge: dict[int, list[str]] = {}
    for each in update_headroom(fleet.packing):
        if each.start_first or each.interrupts:
            by_surge.setdefault(each.max_surge_percent, []).append(each.name)
    for surge, names in sorted(by_surge.items(), reverse=True):
        if surge:
            yield (
                f"rolling update can start new replicas first with max_surge_percent {surge}: "
                f"{_named(names)}"
            )
        else:
            yield f"rolling update stops the only replica before it starts the new: {_named(names)}"


def compare_types(fleet: FleetPlan) -> Iterator[str]:
    """Every planned GPU type as the only one, the cheapest first."""
    demands, sizes = demands_and_sizes(fleet.variants)
    pools = [open_pool(gpu, demands) for gpu in fleet.gpus.values()]
    for cost in cheapest(demands, pools, sizes):
        if cost.gpus is None:
            reasons = [
                f"{each.name}: {each.refused[cost.gpu]}"
                for each in fleet.variants
                if cost.gpu in each.refused and each.variant.bounds.minimum
            ]
            yield f"{cost.gpu:<10} cannot serve all; {reasons[0] if reasons else cost.reason}"
            continue
        price = cost.price_usd_per_hour
        priced = f"{price:,.2f} USD per hour" if price is not None else "no price in the catalogue"
        yield f"{cost.gpu:<10} {_count(cost.gpus):>10}  {priced}"


def misfit(fleet: FleetPlan) -> str | None:
    """Need, have and the nearest fixes of a plan that does not fit; None if it does."""
    homeless = {each.name: each for each in fleet.packing.unplaced}
    if not homeless:
        return None
    lines = []
    for each in fleet.variants:
        lost = homeless.get(each.name)
        if lost is None:
            continue
        if each.plans:
            count = "1 replica" if lost.count == 1 else f"{lost.count} replicas"
            lines.append(f"{each.name}: {count} without a place: {lost.reason}")
        else:
            lines += [f"{each.name} on {gpu}: {why}" for gpu, why in each.refused.items()]
    shown = lines[:_MOST_NAMED]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown):,} more")
    return "\n".join(["the variants do not fit:", *shown, *_fixes(fleet)])


def _fixes(fleet: FleetPlan) -> Iterator[str]:
    if not all(each.plans for each in fleet.variants):
        return  # each refusal names its own
    short = [use for use in fleet.packing.types if use.needed_gpus > use.pool.count]
    for use in short:
        yield (
            f"fix: {use.needed_gpus - use.pool.count:,} more {use.pool.gpu} "
            f"({use.needed_gpus:,} in all)"
        )
    if len(fleet.variants) <= _MOST_SHRUNK:
        factor = _shrink(fleet)
        if factor is not None:
            yield f"fix: gpu.concurrency times {factor:g} for every variant"


def _shrink(fleet: FleetPlan) -> float | None:
    """The largest factor on all concurrencies, in twentieths, with which everything fits."""
    pools = {use.pool.gpu: use.pool for use in fleet.packing.types}
    for step in range(_SHRINK_STEPS - 1, 0, -1):
        smaller = [_scaled(each.variant, step / _SHRINK_STEPS) for each in fleet.variants]
        if any(each is None for each in smaller):
            return None
        found = plan_fleet(
            [each for each in smaller if each is not None],
            fleet.gpus,
            pools,
            types=list(pools),
            calibrations=fleet.calibrations,
        )
        if found.fits:
            return step / _SHRINK_STEPS
    return None


def _scaled(variant: FleetVariant, factor: float) -> FleetVariant | None:
    """The variant with less concurrency; None once it could not hold one request."""
    args = variant.args
    concurrency = (args.gpu.concurrency if args.gpu else None) or DEFAULT_CONCURRENCY
    if concurrency * factor < 1 or args.gpu is None:
        return None
    gpu = args.gpu.model_copy(update={"concurrency": concurrency * factor})
    return replace(variant, args=args.model_copy(update={"gpu": gpu}))


def _count(n_gpus: int) -> str:
    return "1 GPU" if n_gpus == 1 else f"{n_gpus:,} GPUs"


def _named(names: list[str] | tuple[str, ...]) -> str:
    extra = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {extra:,} more" if extra > 0 else "")
