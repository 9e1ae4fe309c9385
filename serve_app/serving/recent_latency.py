"""Times to first token of the last minutes by variant: what the console's sparklines show.

Of one router replica; of streams, since no other answer has a first token. One costs two additions
to buckets: a few microseconds.
"""

from typing import Any

from serve_app.domain.observation import Observation
from serve_app.routing.window import WindowedQuantiles

WINDOW_S = 60.0
STEP_S = 5.0
N_STEPS = 60
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_FAILED = 500


class RecentLatency:
    """Feed it observations; `view` is JSON. Times come from one clock and do not go back."""

    def __init__(self) -> None:
        self._variants: dict[str, _Variant] = {}

    def observe(self, seen: Observation, now_s: float) -> None:
        """Count one answer. A variant's errors have no part in its times."""
        variant = self._variants.get(seen.variant)
        if variant is None:
            variant = self._variants[seen.variant] = _Variant()
        variant.add(seen, now_s)

    def view(self, name: str, now_s: float) -> dict[str, Any] | None:
        """Quantiles (s) of the last minute, and of each step of the last five; None: no answer yet.

        `n` counts the streams of the last minute. A step without one is None: a gap is a gap.
        """
        variant = self._variants.get(name)
        return None if variant is None else variant.view(now_s)

    def keep(self, names: frozenset[str]) -> None:
        """Forget the variants that are not among `names`."""
        for name in self._variants.keys() - names:
            del self._variants[name]


class _Step:
    __slots__ = ("index", "n_failed", "times")

    def __init__(self, index: int) -> None:
        self.index = index
        self.n_failed = 0
        self.times = WindowedQuantiles(STEP_S, n_slots=1)  # always asked at time 0: keeps all


class _Variant:
    __slots__ = ("_recent", "_steps")

    def __init__(self) -> None:
        self._recent = WindowedQuantiles(WINDOW_S)
        self._steps: list[_Step | None] = [None] * N_STEPS

    def add(self, seen: Observation, now_s: float) -> None:
        index = int(now_s / STEP_S)
        step = self._steps[index % N_STEPS]
        if step is None or step.index != index:
            step = self._steps[index % N_STEPS] = _Step(index)
        if seen.status >= _FAILED:
            step.n_failed += 1
        elif seen.status < 400 and seen.ttft_s is not None:
            step.times.add(seen.ttft_s, 0.0)
            self._recent.add(seen.ttft_s, now_s)

    def view(self, now_s: float) -> dict[str, Any]:
        now = int(now_s / STEP_S)
        steps = [self._at(index) for index in range(now - N_STEPS + 1, now + 1)]
        recent = steps[-int(WINDOW_S / STEP_S) :]
        return {
            "window_s": WINDOW_S,
            "step_s": STEP_S,
            "ttft_s": {name: self._recent.quantile(p, now_s) for name, p in PERCENTILES.items()},
            "n": self._recent.n,
            "n_failed": sum(step.n_failed for step in recent if step is not None),
            "steps": {
                name: [step and step.times.quantile(p, 0.0) for step in steps]
                for name, p in PERCENTILES.items()
            },
        }

    def _at(self, index: int) -> _Step | None:
        step = self._steps[index % N_STEPS]
        return step if step is not None and step.index == index else None
