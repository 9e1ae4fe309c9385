"""How many requests may be asked again: a share of the recent ones, and a few per second besides.

Retries must not multiply the load on variants that fail because of their load. As Finagle's
`RetryBudget` (deposits that expire) and Envoy's `retry_budget` (a share, and a floor).
Pure: the clock is the caller's.
"""

from dataclasses import dataclass

from serve_app.routing.recent import RecentCounts


@dataclass(frozen=True)
class BudgetRules:
    """Within `window_s`: at most `share` of its requests, and `min_per_s * window_s` besides."""

    share: float = 0.2
    min_per_s: float = 10.0
    window_s: float = 10.0


class RetryBudget:
    """Counts requests (`total`) and retries (`part`) of the window."""

    def __init__(self, rules: BudgetRules) -> None:
        self.rules = rules
        self._recent = RecentCounts(rules.window_s)

    def request(self, now_s: float) -> None:
        """A request came, and is tried for the first time."""
        self._recent.add(now_s, total=1)

    def retry(self, now_s: float) -> bool:
        """Take one retry out of the budget; False, and nothing is taken, if it is spent."""
        if self.left(now_s) < 1:
            return False
        self._recent.add(now_s, part=1)
        return True

    def left(self, now_s: float) -> int:
        """Retries that could be taken now."""
        recent, rules = self._recent, self.rules
        recent.forget(now_s)
        allowed = rules.share * recent.total + rules.min_per_s * rules.window_s
        # Floats such as 0.1 * 30 end just below a whole number.
        return max(0, int(allowed + 1e-9) - recent.part)
