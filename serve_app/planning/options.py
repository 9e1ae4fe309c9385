"""Which variant can run on which pool at all, and why another cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.fleet import Demand, Pool, Unplaced

SizesByType = Mapping[str, Mapping[str, int]]
"""Variant name to GPU type to bp of one replica there; a type that is absent cannot run it."""


def options_of(
    demands: Sequence[Demand], pools: Sequence[Pool], sizes: SizesByType | None
) -> tuple[dict[str, dict[int, Demand]], list[Unplaced]]:
    """Each variant's pools with its demand there, and the variants that no pool can hold."""
    options, impossible = {}, []
    for demand in demands:
        by_pool, obstacles = {}, []
        for i, pool in enumerate(pools):
            size_bp = demand.size_bp if sizes is None else sizes.get(demand.name, {}).get(pool.gpu)
            if size_bp is None:
                obstacles.append(f"{pool.gpu} cannot run it")
                continue
            there = replace(demand, size_bp=size_bp)
            obstacle = _obstacle(there, pool)
            if obstacle:
                obstacles.append(obstacle)
            else:
                by_pool[i] = there
        if by_pool:
            options[demand.name] = by_pool
        else:
            why = "; ".join(obstacles) or "there are no GPUs"
            impossible.append(Unplaced(demand.name, demand.minimum, why))
    return options, impossible


def _obstacle(demand: Demand, pool: Pool) -> str | None:
    if demand.size_bp > BP_TOTAL * demand.gpus:
        each = f"{demand.gpus} {pool.gpu}" if demand.gpus > 1 else f"one {pool.gpu}"
        need = demand.size_bp / (BP_TOTAL * demand.gpus)
        return f"it needs {need:.2f} times the memory of {each}: lower its need or use more GPUs"
    if demand.gpus > pool.gpus_per_node:
        return (
            f"it needs {demand.gpus} GPUs of one node, and nodes of {pool.gpu} have "
            f"{pool.gpus_per_node}"
        )
    return None
