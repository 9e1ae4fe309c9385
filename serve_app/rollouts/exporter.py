"""The rollout's own metrics, served by the command while it runs (`--metrics-port`)."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from serve_app.config.rollout import RolloutConfig
from serve_app.rollout.judge import RolloutVerdict, Ruling, log_against
from serve_app.rollouts.controller import LOG_10
from serve_app.rollouts.state import RolloutState
from serve_app.telemetry import names


class Exporter:
    """A registry of its own; `serve` opens the port. Told at every look, as `Show`."""

    def __init__(self, config: RolloutConfig) -> None:
        self.registry = CollectorRegistry()
        self._plan = config.to_plan()
        self._labels = {"model": config.model, "candidate": config.candidate}
        self._gauges = {
            metric.name: Gauge(
                metric.name, metric.description, metric.labels, registry=self.registry
            )
            for metric in (
                names.ROLLOUT_STEP,
                names.ROLLOUT_SHARE,
                names.ROLLOUT_REQUESTS,
                names.ROLLOUT_AGAINST,
                names.ROLLOUT_MARGIN,
                names.ROLLOUT_VERDICT,
            )
        }

    def serve(self, port: int, address: str = "127.0.0.1") -> None:
        """Answer at `/metrics`. Raises OSError where the port is taken."""
        start_http_server(port, addr=address, registry=self.registry)

    def show(self, state: RolloutState, ruling: Ruling | None, troubles: Sequence[str]) -> None:
        """The state of this look."""
        standing = state.standing
        if standing.step < 0:
            return
        self._set(names.ROLLOUT_STEP, standing.step)
        self._set(names.ROLLOUT_SHARE, self._plan.steps[standing.step].share_bp)
        self._set(names.ROLLOUT_REQUESTS, standing.n_candidate)
        self._set(names.ROLLOUT_AGAINST, log_against(self._plan, standing) / LOG_10)
        for name, guard in standing.guards.items():
            self._set(names.ROLLOUT_MARGIN, guard.best_for / LOG_10, guard=name)
        if ruling is not None:
            for verdict in RolloutVerdict:
                is_it = float(verdict == ruling.verdict)
                self._set(names.ROLLOUT_VERDICT, is_it, verdict=verdict)

    def _set(self, metric: names.MetricName, value: float, **labels: str) -> None:
        self._gauges[metric.name].labels(**self._labels, **labels).set(value)
