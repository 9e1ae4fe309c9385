"""All that one router replica counts and traces with, in one hand."""

from collections.abc import Callable
from dataclasses import dataclass

from serve_app.telemetry.metrics import (
    AdmissionMetrics,
    LadderMetrics,
    RouterMetrics,
    ServeAdmissionMetrics,
    ServeLadderMetrics,
    ServeMetrics,
    ServeShadowMetrics,
    ShadowMetrics,
)
from serve_app.telemetry.tracing import Spans, spans_of


@dataclass(frozen=True)
class Meters:
    """`ladder` makes what counts the ladder of one public name."""

    router: RouterMetrics
    shadow: ShadowMetrics
    admission: AdmissionMetrics
    ladder: Callable[[str], LadderMetrics]
    spans: Spans | None = None
    """None: requests are not traced."""


def serve_meters() -> Meters:
    """Through `ray.serve.metrics`: inside a Serve replica."""
    return Meters(
        ServeMetrics(),
        ServeShadowMetrics(),
        ServeAdmissionMetrics(),
        ServeLadderMetrics,
        spans_of("quantile-router"),
    )
