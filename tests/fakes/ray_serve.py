"""What a replica uses of Ray Serve, without Ray: metrics that can be read, and a status.

`install()` puts it in Ray's place for this process: a router in a process of its own then imports
no Ray, and every label that any of its metrics ever had is known.
"""

import sys
from collections import defaultdict
from types import ModuleType, SimpleNamespace
from typing import Any


class Recorder:
    """Every distinct set of labels of every metric."""

    def __init__(self) -> None:
        self.label_sets: dict[str, set[tuple[tuple[str, str], ...]]] = defaultdict(set)
        self.events_total = 0

    def counts(self) -> dict[str, int]:
        """Distinct label sets by metric."""
        return {name: len(sets) for name, sets in sorted(self.label_sets.items())}

    def labels(self) -> dict[str, list[str]]:
        """Every value that a label had, by `metric.label`."""
        values: dict[str, set[str]] = defaultdict(set)
        for name, sets in self.label_sets.items():
            for pairs in sets:
                for label, value in pairs:
                    values[f"{name}.{label}"].add(value)
        return {name: sorted(found) for name, found in sorted(values.items())}


class Metric:
    """Counter, gauge and histogram in one: `ray.serve.metrics` differs in the verb alone.

    Like Ray's it refuses a label that was not declared, a value that is no string, and one that is
    missing.
    """

    recorder = Recorder()

    def __init__(
        self, name: str, description: str = "", tag_keys: Any = None, boundaries: Any = None
    ) -> None:
        self._name = name
        self._keys = frozenset(tag_keys or ())
        self._defaults: dict[str, str] = {}

    def set_default_tags(self, tags: dict[str, str]) -> "Metric":
        self._defaults = dict(tags)
        return self

    def _record(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        whole = {**self._defaults, **(tags or {})}
        if whole.keys() != self._keys:
            raise ValueError(f"{self._name} has the labels {sorted(self._keys)}, given {whole}")
        for label, text in whole.items():
            if not isinstance(text, str):
                raise TypeError(f"{self._name}.{label} must be a string, given {text!r}")
        self.recorder.events_total += 1
        self.recorder.label_sets[self._name].add(tuple(sorted(whole.items())))

    inc = set = observe = _record


def install() -> Recorder:
    """Stand in for `ray.serve` in this process; call it before anything imports Ray."""
    if "ray" in sys.modules:
        raise RuntimeError("Ray is imported already")
    ray, serve, metrics = (ModuleType(f"ray{rest}") for rest in ("", ".serve", ".serve.metrics"))
    ray.__path__, serve.__path__ = [], []  # type: ignore[attr-defined]
    metrics.Counter = metrics.Gauge = metrics.Histogram = Metric  # type: ignore[attr-defined]
    serve.status = lambda: SimpleNamespace(applications={})  # type: ignore[attr-defined]
    ray.serve, serve.metrics = serve, metrics  # type: ignore[attr-defined]
    sys.modules |= {"ray": ray, "ray.serve": serve, "ray.serve.metrics": metrics}
    return Metric.recorder
