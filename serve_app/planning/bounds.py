"""What no packing can beat, and which fills of one GPU can occur at all."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate


def fewest_bins_bound(sizes: Sequence[int], capacity: int) -> int:
    """No packing of `sizes` into bins of `capacity` has fewer bins: L2 of Martello and Toth.

    S. Martello, P. Toth, Discrete Applied Mathematics 28 (1990) 59-70. For each threshold:
    what is larger than capacity minus threshold is alone in its bin, what is larger than half has
    a bin of its own, and what remains fills the room beside the latter and then more bins.
    """
    ordered = sorted(sizes)
    sums = [0, *accumulate(ordered)]
    half = bisect_right(ordered, capacity // 2)
    best = -(-sums[-1] // capacity)
    for threshold in {0, *ordered[:half]}:
        low = bisect_left(ordered, threshold)
        alone = max(bisect_right(ordered, capacity - threshold), half)
        room = (alone - half) * capacity - (sums[alone] - sums[half])
        rest = max(0, sums[half] - sums[low] - room)
        best = max(best, len(ordered) - half + -(-rest // capacity))
    return best


def subset_sums(sizes: Sequence[int], capacity: int) -> int:
    """Which sums up to `capacity` some of `sizes` can have, as bits of one number."""
    mask = (1 << (capacity + 1)) - 1
    reachable = 1
    for size, count in Counter(sizes).items():
        for _ in range(min(count, capacity // size)):
            grown = reachable | (reachable << size & mask)
            if grown == reachable:
                break
            reachable = grown
    return reachable


def smallest_at_least(reachable: int, threshold: int) -> int | None:
    """The smallest reachable sum of `threshold` or more, or None."""
    above = reachable >> threshold
    return threshold + (above & -above).bit_length() - 1 if above else None
