"""What is to be placed (demands), where (pools of GPUs), and what came of it (a packing).

Shares are whole basis points (bp) of one GPU, 10,000 for all of it: Ray's own grain, so that what
is planned here and what Ray books are the same numbers.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

from serve_app.domain.errors import PlanError
from serve_app.domain.units import BP_TOTAL


@dataclass(frozen=True)
class Demand:
    """Replicas of one variant: `minimum` must run, up to `maximum` may.

    `gpus` above 1 takes that many whole GPUs of one node per replica (tensor parallelism), and
    `size_bp` is then over all of them. `weight` says how much of the free space is due to this
    variant, relative to others. Raises PlanError for numbers that make no demand.
    """

    name: str
    size_bp: int
    _: KW_ONLY
    gpus: int = 1
    minimum: int
    maximum: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.size_bp < 1 or self.gpus < 1 or self.weight <= 0:
            raise PlanError(
                f"variant {self.name} has {self.size_bp} bp on {self.gpus} GPUs at weight "
                f"{self.weight}: give at least 1 bp, at least 1 GPU, and a weight above 0"
            )
        if not 0 <= self.minimum <= self.maximum:
            raise PlanError(
                f"variant {self.name} has replicas from {self.minimum} to {self.maximum}: "
                "give a minimum of 0 or more, and a maximum not below it"
            )

    @property
    def share_bp(self) -> int:
        """What one replica takes of each GPU it runs on."""
        return self.size_bp if self.gpus == 1 else BP_TOTAL


@dataclass(frozen=True)
class Pool:
    """`count` GPUs of one type, on nodes of `gpus_per_node` each (the last may have fewer)."""

    gpu: str
    count: int
    gpus_per_node: int = 1
    price_usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.count < 0 or self.gpus_per_node < 1 or (self.price_usd_per_hour or 0) < 0:
            raise PlanError(
                f"pool of {self.gpu} has {self.count} GPUs, {self.gpus_per_node} per node, at "
                f"{self.price_usd_per_hour} USD per hour: give numbers that can be"
            )


@dataclass(frozen=True)
class Share:
    """`count` replicas (one GPU's part of them) of a variant on one GPU, each of `share_bp`."""

    name: str
    count: int
    share_bp: int


@dataclass(frozen=True)
class Placement:
    """One GPU in use: which one, and what sits on it."""

    gpu: str
    node: int
    index: int
    shares: tuple[Share, ...]

    @property
    def used_bp(self) -> int:
        """Sum of the shares, at most 10,000."""
        return sum(share.count * share.share_bp for share in self.shares)


@dataclass(frozen=True)
class Unplaced:
    """Minimum replicas without a place, and why."""

    name: str
    count: int
    reason: str


@dataclass(frozen=True)
class TypeUse:
    """GPUs of one type under the minimum replicas of the variants that were put on it.

    `needed_gpus` is what a packing was found for, whether that many exist or not;
    `lower_bound_gpus` is a number below which none exists. `demands` carry the size on this type.
    """

    pool: Pool
    demands: tuple[Demand, ...]
    needed_gpus: int
    lower_bound_gpus: int


@dataclass(frozen=True)
class Packing:
    """An assignment of replicas to GPUs, and how far from the best it can be.

    Prices are of the GPUs that the minimum replicas need, None where a pool has no price; the best
    packing is then the one with the fewest GPUs. `exact`: none is better, all types considered.
    """

    types: tuple[TypeUse, ...]
    placements: tuple[Placement, ...]
    unplaced: tuple[Unplaced, ...]
    price_usd_per_hour: float | None
    lower_bound_usd_per_hour: float | None
    exact: bool

    @property
    def needed_gpus(self) -> int:
        """GPUs that the minimum replicas take in this packing."""
        return sum(use.needed_gpus for use in self.types)

    @property
    def lower_bound_gpus(self) -> int:
        """No packing of the minimum replicas on the types chosen here takes fewer GPUs."""
        return sum(use.lower_bound_gpus for use in self.types)

    @property
    def gap_gpus(self) -> int:
        """GPUs that a better packing on the same types could save at most; 0 when proven best."""
        return self.needed_gpus - self.lower_bound_gpus

    def replicas(self) -> dict[str, int]:
        """Placed replicas of each variant that has a type."""
        parts = {demand.name: 0 for _, demand in self._demands()}
        for placement in self.placements:
            for share in placement.shares:
                parts[share.name] += share.count
        return {demand.name: parts[demand.name] // demand.gpus for _, demand in self._demands()}

    def home(self, name: str) -> tuple[Pool, Demand] | None:
        """The pool a variant was put on and its demand there, or None where it fits none."""
        return next(((pool, d) for pool, d in self._demands() if d.name == name), None)

    def _demands(self) -> Iterator[tuple[Pool, Demand]]:
        return ((use.pool, demand) for use in self.types for demand in use.demands)
