"""First-fit decreasing in O(n log n): at most 11/9 of the best number of bins, plus 6/9.

G. Dosa, "The tight bound of first fit decreasing bin-packing algorithm is
FFD(I) <= 11/9 OPT(I) + 6/9", ESCAPE 2007.
"""

from collections.abc import Sequence


class FirstFit:
    """Rooms in a row, and the first of them that is large enough: a segment tree of maxima."""

    def __init__(self, rooms: Sequence[int]) -> None:
        self._leaves = 1 << max(len(rooms) - 1, 0).bit_length()
        self._tree = [0] * self._leaves + [*rooms] + [0] * (self._leaves - len(rooms))
        for node in range(self._leaves - 1, 0, -1):
            self._tree[node] = max(self._tree[2 * node], self._tree[2 * node + 1])

    def take(self, size: int) -> int | None:
        """Take `size` of the first room that has it; its place in the row, or None."""
        tree, node = self._tree, 1
        if tree[1] < size:
            return None
        while node < self._leaves:
            node *= 2
            if tree[node] < size:
                node += 1
        index = node - self._leaves
        tree[node] -= size
        while node > 1:
            node //= 2
            largest = max(tree[2 * node], tree[2 * node + 1])
            if tree[node] == largest:
                break
            tree[node] = largest
        return index


def first_fit_decreasing(
    sizes: Sequence[int], rooms: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """What each room gets, in the order of `rooms`, and what found no room."""
    row = FirstFit(rooms)
    filled: list[list[int]] = [[] for _ in rooms]
    left_over = []
    for size in sorted(sizes, reverse=True):
        index = row.take(size)
        if index is None:
            left_over.append(size)
        else:
            filled[index].append(size)
    return filled, left_over
