"""The GPUs of one pool while they are being filled."""

from collections import defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.fleet import Demand, Placement, Pool, Share


class Board:
    """What each GPU has free, and what sits on it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.free_bp = [BP_TOTAL] * pool.count
        self.empty_on_node = [len(node) for node in self.gpus_by_node()]
        self._shares: list[dict[str, int]] = [{} for _ in range(pool.count)]
        self._share_bp: dict[str, int] = {}

    def gpus_by_node(self) -> list[list[int]]:
        """Every GPU, by node."""
        every, width = range(self._pool.count), self._pool.gpus_per_node
        return [[*every[start : start + width]] for start in range(0, len(every), width)]

    def empty_gpus(self) -> list[int]:
        """GPUs with nothing on them; those of nodes that have the fewest of them come first."""
        width = self._pool.gpus_per_node
        empty = (gpu for gpu, free in enumerate(self.free_bp) if free == BP_TOTAL)
        return sorted(empty, key=lambda gpu: (self.empty_on_node[gpu // width], gpu))

    def put(self, demand: Demand, gpu: int) -> None:
        """One replica's part on one GPU."""
        if self.free_bp[gpu] == BP_TOTAL:
            self.empty_on_node[gpu // self._pool.gpus_per_node] -= 1
        self.free_bp[gpu] -= demand.share_bp
        self._share_bp[demand.name] = demand.share_bp
        self._shares[gpu][demand.name] = self._shares[gpu].get(demand.name, 0) + 1

    def seat(self, gpus: int) -> list[int] | None:
        """Empty GPUs of the node that has the fewest, but enough, of them."""
        enough = [(empty, node) for node, empty in enumerate(self.empty_on_node) if empty >= gpus]
        if not enough:
            return None
        start = min(enough)[1] * self._pool.gpus_per_node
        node = range(start, min(start + self._pool.gpus_per_node, self._pool.count))
        return [gpu for gpu in node if self.free_bp[gpu] == BP_TOTAL][:gpus]

    def placements(self) -> list[Placement]:
        """The GPUs in use."""
        return [
            Placement(
                self._pool.gpu,
                *divmod(gpu, self._pool.gpus_per_node),
                tuple(Share(name, n, self._share_bp[name]) for name, n in sorted(shares.items())),
            )
            for gpu, shares in enumerate(self._shares)
            if shares
        ]


class _Rooms:
    """GPUs by what they have free; the tightest that is large enough is one shift away."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._gpus: dict[int, list[int]] = defaultdict(list)
        self._known = 0
        used = [gpu for gpu, free in enumerate(board.free_bp) if free < BP_TOTAL]
        for gpu in [*used, *reversed(board.empty_gpus())]:
            self.add(gpu)

    def add(self, gpu: int) -> None:
        free_bp = self._board.free_bp[gpu]
        self._gpus[free_bp].append(gpu)
        self._known |= 1 << free_bp

    def tightest(self, size_bp: int) -> int | None:
        """Take out the GPU with the least free bp of at least `size_bp`."""
        while above := self._known >> size_bp:
            free_bp = size_bp + (above & -above).bit_length() - 1
            gpus = self._gpus[free_bp]
            gpu = gpus.pop()
            if not gpus:
                self._known ^= 1 << free_bp
            if self._board.free_bp[gpu] == free_bp:  # a team may have taken it meanwhile
                return gpu
        return None


def raise_replicas(board: Board, demands: Iterable[Demand]) -> None:
    """Add replicas up to the maxima while there is room, in weighted fair shares.

    Next is the variant that, with one replica more, holds the least per weight. A share goes to
    the fullest GPU that has room, so that whole GPUs remain for teams.
    """
    rooms = _Rooms(board)
    order = [
        ((d.minimum + 1) * d.size_bp / d.weight, d.name, d.minimum, d)
        for d in demands
        if d.minimum < d.maximum
    ]
    heapify(order)
    while order:
        _, name, replicas, demand = heappop(order)
        if demand.gpus > 1:
            gpus = board.seat(demand.gpus)
        else:
            tightest = rooms.tightest(demand.size_bp)
            gpus = None if tightest is None else [tightest]
        if gpus is None:
            continue  # rooms only shrink: it will not fit later either
        for gpu in gpus:
            board.put(demand, gpu)
            rooms.add(gpu)
        if (replicas := replicas + 1) < demand.maximum:
            due = (replicas + 1) * demand.size_bp / demand.weight
            heappush(order, (due, name, replicas, demand))
