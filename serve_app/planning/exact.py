"""The fewest bins, proven where the search ends within its budget."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.planning.bounds import fewest_bins_bound
from serve_app.planning.first_fit import first_fit_decreasing

SEARCHED_SIZES = 200
"""More than these are packed first-fit decreasing, without a search: it would seldom end."""

NODE_BUDGET = 20_000
"""Steps of the search before it settles for what it has; some 20 ms."""


@dataclass(frozen=True)
class Bins:
    """Sizes by bin, and a number of bins below which nothing is possible."""

    bins: tuple[tuple[int, ...], ...]
    lower_bound: int

    @property
    def exact(self) -> bool:
        """Whether no packing has fewer bins."""
        return len(self.bins) == self.lower_bound


def fewest_bins(sizes: Sequence[int], capacity: int, node_budget: int = NODE_BUDGET) -> Bins:
    """A packing with as few bins as could be found, never more than first-fit decreasing has.

    Every size is from 1 to `capacity`. The search asks for one bin more than the bound as long as
    that is proven impossible.
    """
    lower = fewest_bins_bound(sizes, capacity)
    filled, _ = first_fit_decreasing(sizes, [capacity] * len(sizes))
    bins = tuple(tuple(content) for content in filled if content)
    if len(sizes) > SEARCHED_SIZES:
        return Bins(bins, lower)
    search = _Search(sizes, capacity, node_budget)
    try:
        while lower < len(bins):
            if search.fits(lower):
                return Bins(search.found(), lower)
            lower += 1
    except _BudgetSpentError:
        pass
    return Bins(bins, lower)


class _BudgetSpentError(Exception):
    pass


class _Search:
    """Depth-first over bins: the largest size left, with each maximal choice of others beside it.

    Equal sizes are one size with a count, the largest size left opens the next bin, so that no two
    orders of the same bins are tried; a choice that leaves room for another size is never better
    than the one with it. What was shown not to fit in so many bins is remembered.
    """

    def __init__(self, sizes: Sequence[int], capacity: int, node_budget: int) -> None:
        counted = sorted(Counter(sizes).items(), reverse=True)
        self._sizes = [size for size, _ in counted]
        self._counts = [count for _, count in counted]
        self._capacity = capacity
        self._total = sum(sizes)
        self._nodes_left = node_budget
        self._impossible: dict[tuple[int, ...], int] = {}
        self._taken: list[tuple[int, ...]] = []

    def fits(self, bins: int) -> bool:
        """Whether all sizes fit into so many bins. Raises _BudgetSpentError."""
        self._taken = []
        return self._fits(bins, bins * self._capacity - self._total)

    def found(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self._taken)

    def _fits(self, bins: int, waste: int) -> bool:
        counts = self._counts
        first = next((i for i, count in enumerate(counts) if count), None)
        if first is None:
            return True
        state = tuple(counts)
        if waste < 0 or self._impossible.get(state, -1) >= bins:
            return False
        counts[first] -= 1
        room = self._capacity - self._sizes[first]
        for chosen in self._beside(first, room, room + 1):
            left = room - sum(self._sizes[i] * count for i, count in chosen)
            if left > waste:
                continue
            for i, count in chosen:
                counts[i] -= count
            if self._fits(bins - 1, waste - left):
                beside = [size for i, n in chosen for size in [self._sizes[i]] * n]
                self._taken.append((self._sizes[first], *beside))
                counts[first] += 1
                for i, count in chosen:
                    counts[i] += count
                return True
            for i, count in chosen:
                counts[i] += count
        counts[first] += 1
        self._impossible[state] = bins
        return False

    def _beside(self, index: int, room: int, skipped: int) -> Iterator[tuple[tuple[int, int], ...]]:
        """Maximal choices from `index` on, fullest sizes first; none leaves `skipped` or more."""
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise _BudgetSpentError
        sizes, counts = self._sizes, self._counts
        while index < len(sizes) and not (counts[index] and sizes[index] <= room):
            index += 1
        if index == len(sizes):
            if room < skipped:
                yield ()
            return
        size, available = sizes[index], counts[index]
        most = min(available, room // size)
        for count in range(most, -1, -1):
            least = min(skipped, size) if count < available else skipped
            for rest in self._beside(index + 1, room - count * size, least):
                yield ((index, count), *rest) if count else rest
