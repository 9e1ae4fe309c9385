"""Metrics that can be read: implements `serve_app.telemetry.metrics.ShadowMetrics`."""

from collections import Counter


class RecordingShadowMetrics:
    """Every sample with its labels (variant, shadow, kind)."""

    def __init__(self) -> None:
        self.mirrored: Counter[tuple[str, str, str]] = Counter()
        self.dropped: Counter[tuple[str, str, str]] = Counter()
        self.agreements: list[tuple[str, str, str, float]] = []
        self.lengths: list[tuple[str, str, str, float]] = []
        self.latencies: list[tuple[str, str, str, float]] = []

    def shadow_mirrored(self, variant: str, shadow: str, kind: str) -> None:
        self.mirrored[variant, shadow, kind] += 1

    def shadow_dropped(self, variant: str, shadow: str, kind: str) -> None:
        self.dropped[variant, shadow, kind] += 1

    def shadow_agreement(self, variant: str, shadow: str, kind: str, share: float) -> None:
        self.agreements.append((variant, shadow, kind, share))

    def shadow_length_ratio(self, variant: str, shadow: str, kind: str, ratio: float) -> None:
        self.lengths.append((variant, shadow, kind, ratio))

    def shadow_latency(self, variant: str, shadow: str, kind: str, seconds: float) -> None:
        self.latencies.append((variant, shadow, kind, seconds))

    def why(self) -> dict[str, int]:
        """Drops by reason."""
        return {kind: n for (_, _, kind), n in self.dropped.items()}
