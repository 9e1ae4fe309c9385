"""GPUs with which Ray always finds a place, in whatever order replicas come, go and come again.

Ray places each replica when it is asked for, and moves none. Between nodes it takes any that has
room (its hybrid policy prefers some, at random; Serve's spread policy others), within a node the
GPU with the least room that suffices (`NodeResourceInstanceSet::TryAllocate`). So a good packing
may never come about, and the one promise that holds is: however the other replicas lie, not every
GPU can be too full for this one.

For a replica of `s` bp a GPU is too full above 10,000 - s bp. How many GPUs can be that full at
once, with the replicas there are, is bin covering; one GPU more is enough, and one less is not,
for some order and some choice of Ray's. For few replicas the number is exact, else from above.

Ray (2.60) compares a fraction with the sum of what a node's GPUs have free, not with each of them,
and does not look for another node when none of them has room (ray #52133, #54729): on nodes of
several GPUs a replica may wait for ever beside an empty node. `may_strand` names those replicas;
nodes of one GPU each have none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve_app.domain.errors import PlanError
from serve_app.domain.units import BP_TOTAL
from serve_app.planning.covering import Covering
from serve_app.planning.fleet import Demand, Pool


@dataclass(frozen=True)
class AnyOrder:
    """`gpus` of one type hold these replicas in any order; `enough` if the pool has as many.

    `may_strand` are the variants with a replica that Ray may send to a node that only seems to
    have room, although another has it.
    """

    gpus: int
    enough: bool
    may_strand: tuple[str, ...]

    @property
    def guaranteed(self) -> bool:
        """Whether every replica finds a place, whatever the order."""
        return self.enough and not self.may_strand


def any_order_gpus(
    demands: Sequence[Demand],
    pool: Pool,
    replicas: Mapping[str, int] | None = None,
    surge: int = 0,
) -> AnyOrder:
    """GPUs of `pool`'s type that hold `replicas` (default: the minima) in any order.

    `surge` is a number of replicas more of any one variant, at any one time: a rolling update that
    starts new replicas before old ones are gone. Every demand must fit the pool's nodes. Raises
    PlanError for one that does not.
    """
    counts = {d.name: d.minimum if replicas is None else replicas.get(d.name, 0) for d in demands}
    alive = [d for d in demands if counts[d.name]]
    for demand in alive:
        if demand.size_bp > BP_TOTAL * demand.gpus or demand.gpus > pool.gpus_per_node:
            raise PlanError(
                f"variant {demand.name} needs {demand.size_bp} bp on {demand.gpus} GPUs of one "
                f"node, and {pool.gpu} has nodes of {pool.gpus_per_node}: it fits none"
            )
    crowd = _Crowd(alive, counts, surge)
    shared = max((crowd.full_for(d) + 1 for d in alive if d.gpus == 1), default=0)
    nodes = max((crowd.full_nodes_for(d, pool) + 1 for d in alive if d.gpus > 1), default=0)
    several_gpus = pool.gpus_per_node > 1 and pool.count > pool.gpus_per_node
    return AnyOrder(
        gpus=max(shared, nodes * pool.gpus_per_node),
        enough=shared <= pool.count and nodes <= pool.count // pool.gpus_per_node,
        may_strand=tuple(d.name for d in alive if several_gpus and crowd.may_strand(d, pool)),
    )


class _Crowd:
    """All replicas that can be there at one time."""

    def __init__(self, demands: Sequence[Demand], counts: Mapping[str, int], surge: int) -> None:
        shares = Counter[int]()
        for d in demands:
            if d.gpus == 1:
                shares[d.size_bp] += counts[d.name]
        teams = [d for d in demands if d.gpus > 1]
        self._teams = [(d.gpus, counts[d.name]) for d in teams]
        self._n_shares = shares.total()
        self._smallest_bp = min(shares, default=BP_TOTAL)
        self._whole_gpus = sum(d.gpus * counts[d.name] for d in teams)
        self._surge = surge
        self._surge_gpus = surge * max((d.gpus for d in teams), default=0)
        self._surging = Covering(shares, surge)
        self._steady = Covering(shares) if self._surge_gpus else self._surging

    def full_for(self, demand: Demand) -> int:
        """GPUs that the others can make too full for one share of `demand`."""
        sharing = self._surging.most(demand.size_bp)
        if self._surge_gpus:
            sharing = max(sharing, self._steady.most(demand.size_bp) + self._surge_gpus)
        return sharing + self._whole_gpus

    def full_nodes_for(self, demand: Demand, pool: Pool) -> int:
        """Nodes that the others can leave with fewer empty GPUs than `demand` needs."""
        enough = pool.gpus_per_node - demand.gpus + 1  # GPUs in use, on a node, keep it out
        touched = sum(min(gpus, enough) * count for gpus, count in self._teams)
        touched += self._n_shares - min(demand.gpus, enough)
        widest = max(min(gpus, enough) for gpus, _ in self._teams)
        return (touched + self._surge * widest) // enough

    def may_strand(self, demand: Demand, pool: Pool) -> bool:
        """Whether a node's GPUs can have room together for `demand`, but not where it needs it."""
        widths = {pool.gpus_per_node, pool.count % pool.gpus_per_node or pool.gpus_per_node}
        return any(self._strands(demand, width) for width in widths if width >= demand.gpus)

    def _strands(self, demand: Demand, width: int) -> bool:
        if demand.gpus > 1:
            least_bp, lacking = self._smallest_bp, BP_TOTAL
            touched, blocked = self._n_shares + self._surge, width - demand.gpus + 1
        else:
            lightest = self._surging.lightest_bp(demand.size_bp)
            if lightest is None:
                return False
            least_bp, lacking = lightest, demand.size_bp
            touched, blocked = self._surging.most(demand.size_bp), width
        shared = min(touched, blocked)
        whole = self._whole_gpus + self._surge_gpus - (demand.gpus if demand.gpus > 1 else 0)
        return shared + whole >= blocked and shared * (BP_TOTAL - least_bp) >= lacking
