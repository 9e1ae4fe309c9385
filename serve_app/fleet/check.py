"""Whether the numbers that stand in a config file cover what its engines will take."""

from serve_app.config.sizing import require_share
from serve_app.domain.errors import PlanError
from serve_app.domain.units import format_bytes
from serve_app.fleet.plan import FleetPlan, VariantPlans
from serve_app.planning.plan import MemoryPlan


def check_written(fleet: FleetPlan) -> list[str]:
    """A line for each variant whose numbers are enough, the slack of generous ones included.

    The fleet was planned with the file's own numbers. Raises PlanError with every fault.
    """
    lines, faults = [], []
    for each in fleet.variants:
        plan = fleet.chosen(each.name)
        if plan is None:
            continue
        try:
            lines.append(_check(each, plan))
        except PlanError as error:
            faults.append(str(error))
    if faults:
        raise PlanError("\n".join(faults))
    return lines


def _check(each: VariantPlans, plan: MemoryPlan) -> str:
    args = each.variant.args
    require_share(args, plan)
    wished = args.gpu.concurrency if args.gpu else None
    if wished is not None and plan.concurrency < wished:
        raise PlanError(
            f"variant {each.name}: engine.kv_cache_memory_bytes {plan.kv_cache_bytes} holds "
            f"{plan.concurrency:.2f} requests of {plan.sizes.max_model_len:,} tokens, and "
            f"gpu.concurrency asks for {wished:g}: `quantile plan FILE --write`"
        )
    share = args.gpu.fraction if args.gpu and args.gpu.fraction else 0.0
    spare = format_bytes(int(share * plan.gpu.usable_bytes) - plan.need_bytes)
    return (
        f"{each.name}: needs {plan.fraction:.4f} of a {plan.gpu.name}, has {share:.4f} "
        f"({spare} to spare), {plan.concurrency:.1f} requests at full context"
    )
