"""`configs/local.yaml` as it is: four real vLLM engines behind the router, through HAProxy."""

from pathlib import Path

import psutil
import pytest

from serve_app.domain.errors import CheckpointError
from serve_app.reference.locate import resolve
from serve_app.serving.local_serve import LocalServe
from tests.fakes.otlp import Collector

CONFIG = Path(__file__).parents[2] / "configs" / "local.yaml"
MODEL = "quantile-reference"
PINS = [f"{MODEL}@{name}" for name in ("bf16", "int8", "gptq", "awq")]


@pytest.fixture(scope="session")
def family() -> None:
    """The variants of the reference model; `make test` builds them first."""
    try:
        for name in ("baseline", "int8", "gptq", "awq"):
            resolve(f"reference://{name}")
    except CheckpointError as error:
        pytest.fail(f"{error}; `make test` does it")


@pytest.fixture(scope="package")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="package")
def serve(family, collector, tmp_path_factory: pytest.TempPathFactory):
    """Traces what a client's own context asks for, and nothing else."""
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }
    with LocalServe(CONFIG, log=log, ready_timeout_s=400, environ=environ) as running:
        yield running
        children = psutil.Process(running.pid).children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"left running: {[process.name() for process in alive]}"
