"""How many GPUs some replicas can make too full for another one: bin covering."""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from serve_app.domain.units import BP_TOTAL
from serve_app.planning.bounds import smallest_at_least, subset_sums

SEARCHED_REPLICAS = 12
STEPS = 20_000
"""More replicas, or steps in all, are not searched: the number is then a bound from above."""


class Covering:
    """Replicas by share (bp), and `surge` more of any one share."""

    def __init__(self, shares: Counter[int], surge: int = 0) -> None:
        self._shares, self._surge = shares, surge
        self._sizes = sorted(shares)
        counts = [shares[size] for size in self._sizes]
        self._counts = [0, *accumulate(counts)]
        sums = (size * count for size, count in zip(self._sizes, counts, strict=True))
        self._sums = [0, *accumulate(sums)]
        grown = Counter({size: count + surge for size, count in shares.items()})
        self._reachable = subset_sums(list(grown.elements()), BP_TOTAL)
        self._steps_left = STEPS

    def lightest_bp(self, share_bp: int) -> int | None:
        """The least use of a GPU that is too full for one more share, or None if none can be."""
        return smallest_at_least(self._reachable, BP_TOTAL - share_bp + 1)

    def most(self, share_bp: int) -> int:
        """GPUs that all replicas but one of `share_bp` can make too full for that one."""
        bound = self._bound(share_bp)
        if self._counts[-1] + self._surge > SEARCHED_REPLICAS:
            return bound
        others = self._shares - Counter([share_bp])
        crowds = [others + Counter({size: self._surge}) for size in self._sizes]
        least_bp = BP_TOTAL - share_bp + 1
        return max(self._searched(sorted(c.elements()), least_bp, bound) for c in crowds)

    def _bound(self, share_bp: int) -> int:
        """Each such GPU takes the lightest use that is too full, or one share of more than that."""
        lightest = self.lightest_bp(share_bp)
        if lightest is None:
            return 0
        larger = bisect_left(self._sizes, lightest)
        usable = self._sums[larger] + lightest * (self._counts[-1] - self._counts[larger])
        more = self._surge * min(self._sizes[-1], lightest)
        return (usable - min(share_bp, lightest) + more) // lightest

    def _searched(self, sizes: list[int], least_bp: int, bound: int) -> int:
        while bound and not self._covers(sizes, least_bp, bound):
            bound -= 1
        return bound

    def _covers(self, sizes: list[int], least_bp: int, gpus: int) -> bool:
        """Whether so many GPUs can hold `least_bp` or more; yes where the steps do not suffice."""
        self._steps_left -= 1
        if gpus == 0 or self._steps_left < 0:
            return True
        if sum(min(size, least_bp) for size in sizes) < gpus * least_bp:
            return False
        *rest, largest = sizes
        for left in self._beside(rest, len(rest), least_bp - largest, BP_TOTAL - largest):
            if self._covers(left, least_bp, gpus - 1):
                return True
        while rest and rest[-1] == largest:
            rest.pop()
        return self._covers(rest, least_bp, gpus)

    def _beside(self, sizes: list[int], end: int, lacking: int, room: int) -> list[list[int]]:
        """What is left of `sizes` for each choice among the first `end` that makes up `lacking`."""
        if lacking <= 0:
            return [sizes]
        choices = []
        for i in range(end - 1, -1, -1):
            size = sizes[i]
            if size > room or (i + 1 < end and sizes[i + 1] == size):
                continue
            left = sizes[:i] + sizes[i + 1 :]
            choices += self._beside(left, i, lacking - size, room - size)
        return choices
