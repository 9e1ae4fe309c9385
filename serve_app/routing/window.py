"""Quantiles of the last seconds: cheap to add to, bounded in memory, within 1 % of the value.

Values fall into buckets whose bounds grow by 2 %, so a quantile is off by at most 1 % of itself
(the idea of DDSketch, Masson et al. 2019, with a fixed accuracy). The window is a ring of slots:
what a slot held leaves the sum when its time has passed, so a value counts for `window_s`, give or
take one slot.
"""

import math

_GROWTH = 1.02
_PER_BUCKET = 1.0 / math.log(_GROWTH)
_MIDDLE = 2.0 / (
    1.0 + _GROWTH
)  # of a bucket's upper bound: equally far, relatively, from both ends
_LEAST, _MOST = 1e-6, 1e6


class WindowedQuantiles:
    """Quantiles of the positive values added in the last `window_s` seconds.

    At most one bucket per 2 % between 1e-6 and 1e6 (what lies outside counts as the nearest) and
    slot: some hundred small integers in practice, whatever the rate. Times come from one clock and
    do not go back.
    """

    def __init__(self, window_s: float, n_slots: int = 20) -> None:
        self._slot_s = window_s / n_slots
        self._slots: list[dict[int, int]] = [{} for _ in range(n_slots)]
        self._total: dict[int, int] = {}
        self._now_slot = 0
        self.n = 0
        """Values in the window, as of the last call with a time."""

    def add(self, value: float, now_s: float) -> None:
        """Count one value at `now_s`."""
        self.forget(now_s)
        bucket = math.ceil(math.log(min(max(value, _LEAST), _MOST)) * _PER_BUCKET)
        slot = self._slots[self._now_slot % len(self._slots)]
        slot[bucket] = slot.get(bucket, 0) + 1
        self._total[bucket] = self._total.get(bucket, 0) + 1
        self.n += 1

    def quantile(self, p: float, now_s: float) -> float | None:
        """The nearest-rank quantile `p` (0 < p <= 1) at `now_s`; None where there are no values."""
        self.forget(now_s)
        if not self.n:
            return None
        rank = math.ceil(p * self.n)
        for bucket in sorted(self._total):
            rank -= self._total[bucket]
            if rank <= 0:
                break
        return math.exp(bucket / _PER_BUCKET) * _MIDDLE

    def forget(self, now_s: float) -> None:
        """Drop what is older than the window."""
        slot = int(now_s / self._slot_s)
        passed = slot - self._now_slot
        if passed <= 0:
            return
        n_slots = len(self._slots)
        for index in range(self._now_slot + 1, self._now_slot + 1 + min(passed, n_slots)):
            old = self._slots[index % n_slots]
            for bucket, count in old.items():
                left = self._total[bucket] - count
                if left:
                    self._total[bucket] = left
                else:
                    del self._total[bucket]
                self.n -= count
            old.clear()
        self._now_slot = slot
