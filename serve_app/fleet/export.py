"""A plan as JSON: the same numbers as the table, in bytes and basis points, for programs."""

from dataclasses import asdict
from typing import Any

from serve_app.fleet.plan import FleetPlan, VariantPlans
from serve_app.planning.footprint import Part
from serve_app.planning.plan import MemoryPlan

FORMAT = 1


def fleet_json(fleet: FleetPlan) -> dict[str, Any]:
    """The whole plan; keys are stable within a `format`."""
    packing = fleet.packing
    return {
        "format": FORMAT,
        "fits": fleet.fits,
        "needed_gpus": packing.needed_gpus,
        "lower_bound_gpus": packing.lower_bound_gpus,
        "gap_gpus": packing.gap_gpus,
        "exact": packing.exact,
        "price_usd_per_hour": packing.price_usd_per_hour,
        "lower_bound_usd_per_hour": packing.lower_bound_usd_per_hour,
        "variants": {each.name: _variant(fleet, each) for each in fleet.variants},
        "gpus": [
            {
                "type": placement.gpu,
                "node": placement.node,
                "index": placement.index,
                "used_bp": placement.used_bp,
                "replicas": [asdict(share) for share in placement.shares],
            }
            for placement in packing.placements
        ],
        "unplaced": [asdict(each) for each in packing.unplaced],
    }


def planned_numbers(fleet: FleetPlan) -> dict[str, dict[str, dict[str, Any]]]:
    """What `set_planned` takes: for each placed variant its engine's sizes and its share."""
    chosen = {each.name: fleet.chosen(each.name) for each in fleet.variants}
    return {
        name: {
            "engine": plan.engine_settings(),
            "gpu": {"type": plan.gpu.name, "fraction": plan.fraction},
        }
        for name, plan in chosen.items()
        if plan is not None
    }


def _variant(fleet: FleetPlan, each: VariantPlans) -> dict[str, Any]:
    plan = fleet.chosen(each.name)
    return {
        "checkpoint": each.variant.facts.uri,
        "scheme": each.variant.facts.scheme.describe(),
        "replicas": {
            "minimum": each.variant.bounds.minimum,
            "maximum": each.variant.bounds.maximum,
            "placed": fleet.packing.replicas().get(each.name, 0),
        },
        "plan": plan and _plan(plan),
        "refused": dict(each.refused),
        "notes": dict(each.notes),
    }


def _plan(plan: MemoryPlan) -> dict[str, Any]:
    parts = plan.footprint
    return {
        "gpu": plan.gpu.name,
        "usable_bytes": plan.gpu.usable_bytes,
        "weights": _part(parts.weights),
        "activation": _part(parts.activation),
        "cuda_graphs": _part(parts.cuda_graphs),
        "context": _part(parts.context),
        "margin": _part(parts.margin),
        "need_bytes": plan.need_bytes,
        "fraction_bp": plan.fraction_bp,
        "kv_bytes_per_token": parts.kv_bytes_per_token,
        "kv_bytes_per_request": parts.kv_bytes_per_request,
        "cache_tokens": plan.cache_tokens,
        "concurrency": plan.concurrency,
        "tensor_parallel_size": plan.sizes.tensor_parallel_size,
        "engine": plan.engine_settings(),
    }


def _part(part: Part) -> dict[str, Any]:
    return {"bytes": part.bytes, "source": part.source.value}
