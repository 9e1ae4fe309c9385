"""What a variant's engine takes at each batch size, as it was measured."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from serve_app.domain.errors import ConfigError


@dataclass(frozen=True)
class ServiceCurve:
    """One replica of one variant. Seconds.

    A step of its engine gives every sequence of its batch one token. The step that takes in new
    prompts takes `prefill_s` longer for each, and gives them their first token.
    """

    variant: str
    steps: tuple[tuple[int, float], ...]
    """(sequences in the batch, seconds of one step), ascending in both."""
    prefill_s: float
    max_batch: int
    """Sequences that the engine takes at a time; more wait."""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0][0] < 1 or self.max_batch < 1 or self.prefill_s < 0:
            raise ConfigError(
                f"the curve of {self.variant} needs at least one batch size of at least 1, a "
                f"max_batch of at least 1 and a prefill time of at least 0; have {self.steps}, "
                f"{self.max_batch}, {self.prefill_s}"
            )
        for (small, fast), (large, slow) in pairwise(self.steps):
            if small >= large or fast > slow:
                raise ConfigError(
                    f"the curve of {self.variant} needs larger batches to take no less time, has "
                    f"{fast:g} s at {small} and {slow:g} s at {large}"
                )
        if self.steps[0][1] <= 0:
            raise ConfigError(f"the curve of {self.variant} has a step of {self.steps[0][1]:g} s")

    def step_s(self, batch: int) -> float:
        """Seconds of a step at `batch` sequences: on the line between its measured neighbours.

        Below the smallest measured batch its time; above the largest, on along the last line.
        """
        sizes = [size for size, _ in self.steps]
        at = bisect_left(sizes, batch)
        if at == 0 or len(self.steps) == 1:
            return self.steps[0][1]
        at = min(at, len(self.steps) - 1)
        (small, fast), (large, slow) = self.steps[at - 1 : at + 1]
        return fast + (slow - fast) * (batch - small) / (large - small)

    def rate_per_s(self, batch: int, tokens: float) -> float:
        """Requests per second at a steady `batch`, each of `tokens` output tokens."""
        return 1.0 / (tokens * self.step_s(batch) / batch + self.prefill_s)

    def best_batch(self, tokens: float, tpot_s: float | None = None) -> int:
        """The batch of the highest rate among those with a TPOT within `tpot_s`; 1 if none is."""
        allowed = [
            batch
            for batch in range(1, self.max_batch + 1)
            if tpot_s is None or self._tpot_s(batch, tokens) <= tpot_s
        ]
        return max(allowed or [1], key=lambda batch: self.rate_per_s(batch, tokens))

    def _tpot_s(self, batch: int, tokens: float) -> float:
        """Of a steady batch: a step, and the prompts that others bring in meanwhile."""
        return self.step_s(batch) + batch * self.prefill_s / tokens


def rising(points: Mapping[int, tuple[float, int]]) -> tuple[tuple[int, float], ...]:
    """Measured times made not to fall with the batch: neighbours that do are averaged by their
    counts (pool adjacent violators, the least-squares isotonic fit; Barlow et al. 1972).

    `points`: batch -> (seconds, how many samples say so).
    """
    pools: list[tuple[list[int], float, int]] = []
    for batch in sorted(points):
        seconds, n = points[batch]
        pools.append(([batch], seconds, n))
        while len(pools) > 1 and pools[-2][1] > pools[-1][1]:
            (right, slow, n_right), (left, fast, n_left) = pools.pop(), pools.pop()
            n_both = n_left + n_right
            pools.append((left + right, (fast * n_left + slow * n_right) / n_both, n_both))
    return tuple((batch, seconds) for batches, seconds, _ in pools for batch in batches)


def named(curves: Sequence[ServiceCurve], wanted: Sequence[str]) -> dict[str, ServiceCurve]:
    """The curves of `wanted`, in that order. Raises ConfigError for one that was not measured."""
    known = {curve.variant: curve for curve in curves}
    if missing := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"no curve of {', '.join(missing)}; measured: {', '.join(known) or 'none'}"
        )
    return {name: known[name] for name in wanted}
