"""GPUs that hold the same, counted once: what a reader, and a picture, has room for."""

from collections import Counter
from dataclasses import dataclass

from serve_app.planning.fleet import Packing, Placement, Share


@dataclass(frozen=True)
class Layout:
    """`count` GPUs of one type with the same replicas on each."""

    gpu: str
    count: int
    shares: tuple[Share, ...]
    used_bp: int


def layouts(packing: Packing) -> list[Layout]:
    """The distinct layouts, by GPU type as the packing lists them, the fullest first."""
    counted: Counter[tuple[str, tuple[Share, ...]]] = Counter()
    used: dict[tuple[str, tuple[Share, ...]], int] = {}
    for placement in packing.placements:
        key = (placement.gpu, _sorted(placement))
        counted[key] += 1
        used[key] = placement.used_bp
    order = {use.pool.gpu: index for index, use in enumerate(packing.types)}
    found = [Layout(gpu, n, shares, used[gpu, shares]) for (gpu, shares), n in counted.items()]
    return sorted(found, key=lambda each: (order.get(each.gpu, 0), -each.used_bp, -each.count))


def _sorted(placement: Placement) -> tuple[Share, ...]:
    return tuple(sorted(placement.shares, key=lambda share: (-share.share_bp, share.name)))
