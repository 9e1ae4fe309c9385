"""What can be known to go wrong before anything expensive starts."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from serve_app.domain.errors import ConfigError
from serve_app.pipeline.carry_out import MODELS
from serve_app.pipeline.decide import Step
from serve_app.pipeline.pipeline_file import PipelineFile
from serve_app.pipeline.schema import Make, Measure, Validate, variant_of
from serve_app.quantize.preflight import check_job
from serve_app.quantize.runner import quantize_python
from serve_app.reference.locate import cache_dir
from serve_app.serving.local_serve import SERVE_ENV

_HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
"""Ray 2.60's defaults."""


def check_ready(file: PipelineFile, left: Sequence[Step], out: Path, console: Console) -> None:
    """Raise a QuantileError where a stage that is left could not run; say what it will take."""
    stages = [step.stage for step in left]
    if any(isinstance(stage, Make) for stage in stages):
        quantize_python()
        models = cache_dir() / MODELS if file.is_reference else out / MODELS
        _check_jobs(file, [stage for stage in stages if isinstance(stage, Make)], models, console)
    trials = [stage for stage in stages if isinstance(stage, Measure | Validate)]
    if trials:
        require_free("127.0.0.1", file.pipeline.port, "set another `port` in the pipeline")
        for name, port in haproxy_ports({**SERVE_ENV, **os.environ}).items():
            require_free("0.0.0.0", port, f"set another one as {name}")  # noqa: S104 - as Ray does
    names = {stage.name for stage in trials}
    loads = [each for name, each in file.campaigns.items() if name in names]
    seconds = sum(each.planned_s(len(each.variant_names())) for each in loads)
    text = f"{len(stages)} stages to run: {', '.join(stage.name for stage in stages)}"
    text += f"; campaigns take {seconds / 60:.1f} minutes of it" if loads else ""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def haproxy_ports(environ: Mapping[str, str]) -> dict[str, int]:
    """Ports that Serve's HAProxy needs besides the endpoint's, by what sets them. Two instances of
    Serve on one machine need different ones.
    """
    if environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return {}
    return {name: int(environ.get(name) or known) for name, known in _HAPROXY_PORTS.items()}


def require_free(host: str, port: int, way_out: str) -> None:
    """Raise ConfigError where something listens on the port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be listened on ({error.strerror}): end what uses it (`serve "
                f"shutdown`, or the `serve run` that owns it), or {way_out}"
            ) from None


def _check_jobs(file: PipelineFile, stages: Sequence[Make], models: Path, console: Console) -> None:
    for stage in stages:
        for name in map(variant_of, stage.recipes):
            for line in check_job(file.base, file.recipes[name], models / name):
                console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)
