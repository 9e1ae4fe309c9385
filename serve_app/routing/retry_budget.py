"""How many requests may be asked again: a share of the recent ones, and a few per second besides.

Retries must not multiply the load on variants that fail because of their load. As Finagle's
`RetryBudget` (a token bucket whose deposits expire after `window_s`) and Envoy's `retry_budget`.
Pure: the clock is the caller's.
"""

from collections import deque
from dataclasses import dataclass

_SLICES = 10


@dataclass(frozen=True)
class BudgetRules:
    """Within each `window_s`: at most `share` of its requests, and `min_per_s * window_s`."""

    share: float = 0.2
    min_per_s: float = 10.0
    window_s: float = 10.0


class RetryBudget:
    """Counts requests and retries in slices of a tenth of the window; whole slices expire."""

    def __init__(self, rules: BudgetRules) -> None:
        self.rules = rules
        self._slices: deque[list[float]] = deque()
        """`[started_s, requests, retries]`, the oldest first."""
        self._requests = self._retries = 0

    def request(self, now_s: float) -> None:
        """A request came that has not been tried yet."""
        self._slice(now_s)[1] += 1
        self._requests += 1

    def retry(self, now_s: float) -> bool:
        """Take one retry out of the budget; False, and nothing is taken, if it is spent."""
        current = self._slice(now_s)
        if self._retries + 1 > self._allowed():
            return False
        current[2] += 1
        self._retries += 1
        return True

    def left(self, now_s: float) -> int:
        """Retries that could be taken now."""
        self._slice(now_s)
        return int(self._allowed() - self._retries)

    def _allowed(self) -> float:
        rules = self.rules
        return rules.share * self._requests + rules.min_per_s * rules.window_s

    def _slice(self, now_s: float) -> list[float]:
        """The slice of this moment, after what is older than the window was forgotten."""
        slices, width_s = self._slices, self.rules.window_s / _SLICES
        if slices and now_s < slices[-1][0] + width_s:
            return slices[-1]
        while slices and slices[0][0] + self.rules.window_s <= now_s:
            _, requests, retries = slices.popleft()
            self._requests -= int(requests)
            self._retries -= int(retries)
        slices.append([now_s, 0, 0])
        return slices[-1]
