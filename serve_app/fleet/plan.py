"""The plan of a whole config file: each variant's bytes on each GPU type, and who sits where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from serve_app.config.gpus import find_gpu
from serve_app.config.replicas import ReplicaBounds
from serve_app.config.schema import VariantArgs
from serve_app.config.sizing import cache_wish, support_of, variant_plan
from serve_app.domain.errors import PlanError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.quant import QuantScheme
from serve_app.domain.units import BP_TOTAL, format_bytes
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.fixes import Trial, nearest_fixes
from serve_app.planning.fleet import Demand, Packing, Pool
from serve_app.planning.footprint import Calibrations
from serve_app.planning.packing import pack
from serve_app.planning.plan import MemoryPlan


@dataclass(frozen=True)
class FleetVariant:
    """One variant as the file asks for it, and what is known of its checkpoint."""

    args: VariantArgs
    bounds: ReplicaBounds
    facts: CheckpointFacts
    weight: float = 1.0
    """How much of the free space is due to it: its share of the traffic."""


@dataclass(frozen=True)
class VariantPlans:
    """A variant's plan on each GPU type that takes a replica, and why the others do not."""

    variant: FleetVariant
    plans: Mapping[str, MemoryPlan]
    refused: Mapping[str, str]
    notes: Mapping[str, str]
    """By GPU type: what runs there, but not as the scheme promises."""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.args.name


@dataclass(frozen=True)
class FleetPlan:
    """All variants' plans and their packing on the GPUs."""

    variants: tuple[VariantPlans, ...]
    packing: Packing
    gpus: Mapping[str, GpuProfile]
    calibrations: Calibrations | None
    """What was measured, for plans of the same variants that change something."""

    def chosen(self, name: str) -> MemoryPlan | None:
        """The variant's plan on the GPU type where the packing put it; None where it fits none."""
        home = self.packing.home(name)
        plans = next(each.plans for each in self.variants if each.name == name)
        return plans.get(home[0].gpu) if home else None

    @property
    def fits(self) -> bool:
        """Whether every minimum replica has a place."""
        return not self.packing.unplaced


def plan_fleet(
    variants: Sequence[FleetVariant],
    gpus: Mapping[str, GpuProfile],
    pools: Mapping[str, Pool],
    *,
    types: Sequence[str] | None = None,
    as_written: bool = False,
    calibrations: Calibrations | None = None,
) -> FleetPlan:
    """Plan every variant on its own GPU type, or on any of `types`, and pack the replicas.

    `pools` says how many GPUs of a type there are; of a type that it leaves out there are as many
    as the minimum replicas need. `as_written` takes the file's numbers as they are; otherwise what
    was asked for (`concurrency`) is computed anew.
    """
    planned = tuple(
        _plans(variant, gpus, types or _own_type(variant), as_written, calibrations)
        for variant in variants
    )
    names = list(types or dict.fromkeys(_own_type(variant)[0] for variant in variants))
    demands, sizes = demands_and_sizes(planned)
    open_types = [name for name in names if name not in pools]
    all_pools = [pools.get(name) or open_pool(gpus[name], demands) for name in names]
    if open_types:
        counted = pack([replace(demand, maximum=demand.minimum) for demand in demands],
                       all_pools, sizes)  # fmt: skip
        needed = {use.pool.gpu: use.needed_gpus for use in counted.types}
        all_pools = [
            replace(pool, count=needed.get(pool.gpu, 0)) if pool.gpu in open_types else pool
            for pool in all_pools
        ]
    return FleetPlan(planned, pack(demands, all_pools, sizes), gpus, calibrations)


def _own_type(variant: FleetVariant) -> tuple[str, ...]:
    if variant.args.gpu is None:
        raise PlanError(
            f"variant {variant.args.name} has no `gpu`: add `gpu: {{type: L4}}` to its args, or "
            "name a type with --gpu"
        )
    return (variant.args.gpu.type,)


def _plans(
    variant: FleetVariant,
    gpus: Mapping[str, GpuProfile],
    types: Sequence[str],
    as_written: bool,
    calibrations: Calibrations | None,
) -> VariantPlans:
    args, facts = variant.args, variant.facts
    wish = cache_wish(args, as_written=as_written)
    plans, refused, notes = {}, {}, {}
    for name in types:
        gpu = find_gpu(gpus, name)
        support = support_of(args, facts, gpu)
        if not support.runs:
            refused[name] = f"{support.reason}: {support.fix}"
            continue
        if support.reason:
            notes[name] = support.reason
        try:
            plan = variant_plan(args, facts, gpu, calibrations, wish)
        except PlanError as error:
            refused[name] = str(error)
            continue
        if plan.fits:
            plans[name] = plan
            continue
        fixes = nearest_fixes(
            Trial(plan, facts, wish, partial(_runs_on, args, facts), calibrations), gpus.values()
        )
        refused[name] = (
            f"needs {format_bytes(plan.need_bytes)}, a {name} has {format_bytes(gpu.usable_bytes)}"
            + (f"; it fits with {', or '.join(fixes)}" if fixes else "; no one change makes it fit")
        )
    return VariantPlans(variant, plans, refused, notes)


def _runs_on(
    args: VariantArgs, facts: CheckpointFacts, gpu: GpuProfile, scheme: QuantScheme
) -> bool:
    return support_of(args, replace(facts, scheme=scheme), gpu).runs


def demands_and_sizes(
    planned: Sequence[VariantPlans],
) -> tuple[list[Demand], dict[str, dict[str, int]]]:
    """What the packer takes: a demand per variant, and its size on each GPU type."""
    sizes = {
        each.name: {gpu: _size_bp(plan) for gpu, plan in each.plans.items()} for each in planned
    }
    return [_demand(each, max(sizes[each.name].values(), default=None)) for each in planned], sizes


def _size_bp(plan: MemoryPlan) -> int:
    return plan.fraction_bp * plan.sizes.tensor_parallel_size


def _demand(each: VariantPlans, size_bp: int | None) -> Demand:
    variant = each.variant
    ranks = variant.args.engine.tensor_parallel_size
    return Demand(
        each.name,
        size_bp or BP_TOTAL * ranks,
        gpus=ranks,
        minimum=variant.bounds.minimum,
        maximum=variant.bounds.maximum,
        weight=variant.weight,
    )


def open_pool(gpu: GpuProfile, demands: Sequence[Demand]) -> Pool:
    """As many GPUs of a type as there could ever be need of."""
    count = sum(demand.minimum * demand.gpus for demand in demands)
    per_node = max((demand.gpus for demand in demands), default=1)
    return Pool(gpu.name, count * per_node, per_node, gpu.price_usd_per_hour)
