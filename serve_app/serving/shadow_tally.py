"""What mirroring has come to since the replica's start, for Prometheus and for `/status`."""

from collections import Counter
from typing import Any

from serve_app.routing.agreement import Agreement
from serve_app.routing.shadowing import Drop
from serve_app.serving.shadow_compare import End
from serve_app.telemetry.metrics import ShadowMetrics


class ShadowTally:
    """Counts drops, answers and agreements of one alias's mirrored requests."""

    def __init__(self, metrics: ShadowMetrics) -> None:
        self._metrics = metrics
        self._dropped: Counter[Drop] = Counter()
        self._mirrored: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def dropped(self, primary: str, shadow: str, reason: Drop) -> None:
        """A mirror was given up."""
        self._dropped[reason] += 1
        self._metrics.shadow_dropped(primary, shadow, str(reason))

    def mirrored(
        self, primary: str, shadow: str, ends: tuple[End, End], found: Agreement, is_greedy: bool
    ) -> None:
        """Both answered. Sampled answers count by their times alone: their texts differ anyway."""
        kind = "greedy" if is_greedy else "sampled"
        self._mirrored[kind] += 1
        self._metrics.shadow_mirrored(primary, shadow, kind)
        for side, end in zip(("primary", "shadow"), ends, strict=True):
            if end.ttft_s is not None:
                self._metrics.shadow_latency(primary, shadow, f"{side}_ttft", end.ttft_s)
            self._metrics.shadow_latency(primary, shadow, f"{side}_duration", end.duration_s)
        if not is_greedy:
            return
        shares = {
            "exact": found.exact,
            "normalised": found.normalised,
            f"{found.unit}_prefix": found.token_prefix,
            "finish_reason": found.same_finish,
        }
        for name, share in shares.items():
            if share is not None:
                self._add(name, float(share))
                self._metrics.shadow_agreement(primary, shadow, name, float(share))
        if found.length_ratio is not None:
            self._add("length_ratio", found.length_ratio)
            self._metrics.shadow_length_ratio(primary, shadow, found.unit, found.length_ratio)

    def _add(self, name: str, value: float) -> None:
        self._sums[name] += value  # type: ignore[assignment]
        self._counts[name] += 1

    def view(self) -> dict[str, Any]:
        """As JSON; means over the greedy requests that had the figure."""
        return {
            "mirrored": dict(self._mirrored),
            "dropped": {str(reason): n for reason, n in self._dropped.items()},
            "means": {name: self._sums[name] / n for name, n in self._counts.items()},
        }
