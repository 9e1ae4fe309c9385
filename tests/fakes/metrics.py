"""Metrics that can be read: implement the protocols of `serve_app.telemetry.metrics`."""

from collections.abc import Mapping
from typing import Any

from serve_app.domain.observation import Observation
from serve_app.telemetry.meters import Meters
from tests.fakes.admission import RecordingAdmissionMetrics
from tests.fakes.shadow_metrics import RecordingShadowMetrics


class RecordingMetrics:
    def __init__(self) -> None:
        self.answers: list[tuple[str, str, int]] = []
        self.fallbacks: list[str] = []
        self.broken: list[str] = []
        self.seen: list[Observation] = []
        self.retries: list[str] = []
        self.refused_retries: list[str] = []
        self.breakers: list[tuple[str, str]] = []
        self.timeouts: list[tuple[str, str]] = []
        self.own_s: list[float] = []
        self.standing: dict[str, tuple[float, int, str | None]] = {}
        self.splits: dict[str, dict[str, int]] = {}

    def answered(self, variant: str, reason: str, status: int) -> None:
        self.answers.append((variant, str(reason), status))

    def fell_back(self, variant: str) -> None:
        self.fallbacks.append(variant)

    def broke_off(self, variant: str) -> None:
        self.broken.append(variant)

    def observed(self, seen: Observation) -> None:
        self.seen.append(seen)

    def retried(self, variant: str) -> None:
        self.retries.append(variant)

    def retry_refused(self, variant: str) -> None:
        self.refused_retries.append(variant)

    def breaker_changed(self, variant: str, state: str) -> None:
        self.breakers.append((variant, str(state)))

    def timed_out(self, variant: str, where: str) -> None:
        self.timeouts.append((variant, where))

    def decided(self, own_s: float) -> None:
        self.own_s.append(own_s)

    def stands(
        self, variant: str, *, ready: float, in_flight: int, breaker: str | None = None
    ) -> None:
        self.standing[variant] = (ready, in_flight, breaker)

    def split(self, alias: str, shares_bp: Mapping[str, int]) -> None:
        self.splits[alias] = dict(shares_bp)


class RecordingLadderMetrics:
    def __init__(self) -> None:
        self.moves: list[tuple[Any, Any]] = []
        self.standing: Any = None

    def moved(self, before: Any, now: Any) -> None:
        self.moves.append((before, now))

    def stands(self, now: Any) -> None:
        self.standing = now


def recording_meters() -> Meters:
    """`router` is a `RecordingMetrics`, and so on."""
    return Meters(
        RecordingMetrics(),
        RecordingShadowMetrics(),
        RecordingAdmissionMetrics(),
        lambda alias: RecordingLadderMetrics(),
    )
