"""A real Ray Serve instance through its own CLI, HAProxy ingress on, fake engines behind."""

from pathlib import Path

import psutil
import pytest
import yaml

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.serving.local_serve import LocalServe
from tests.fakes.serve_client import fake_args

MODEL = "m"
PORT = 8100
SHARES = {"a": 5000, "b": 3000, "c": 2000}
SCRIPTS = {
    "a": {"ttft_ms": 20, "itl_ms": 5, "output_tokens": 16},
    "b": {"ttft_ms": 20, "itl_ms": 5, "output_tokens": 16},
    "c": {"ttft_ms": 20, "itl_ms": 5, "output_tokens": 16},
    "slow": {"ttft_ms": 200, "itl_ms": 50, "output_tokens": 400},
    "dying": {
        "ttft_ms": 5,
        "itl_ms": 5,
        "output_tokens": 16,
        "faults": [{"kind": "DieMidStream", "after_tokens": 3}],
    },
    "busy": {"faults": [{"kind": "FailEvery", "k": 1, "status": 503}]},
}
METHODS = {"a": "unquantized", "b": "gptq"}


def serve_config(
    shares: dict[str, int] | None = None,
    *,
    fallback: tuple[str, ...] = ("a", "b", "c"),
    routers: int = 2,
    router_args: dict | None = None,
    replicas: dict[str, int] | None = None,
    **user_config: dict,
) -> dict:
    """A Serve config like configs/local.yaml, with fake engines."""
    shares = {**dict.fromkeys(SCRIPTS, 0), **(shares or SHARES)}
    variants = [
        variant_application(
            fake_args(MODEL, name, script, METHODS.get(name, "awq")),
            {"num_replicas": (replicas or {}).get(name, 1)},
        )
        for name, script in SCRIPTS.items()
    ]
    rules = {"split": shares, "fallback": list(fallback), **user_config}
    return serve_content(PORT, MODEL, rules, variants, router_args, n_routers=routers)


def write_config(path: Path, config: dict) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.fixture(scope="package")
def serve(tmp_path_factory: pytest.TempPathFactory):
    """Two router replicas and the variants of SCRIPTS; one instance for all tests here."""
    folder = tmp_path_factory.mktemp("serve")
    config = write_config(folder / "serve.yaml", serve_config())
    with LocalServe(config, log=folder / "serve.log", ready_timeout_s=180) as running:
        yield running
        children = psutil.Process(running.pid).children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"left running: {[process.name() for process in alive]}"


@pytest.fixture
def deploy(serve, tmp_path):
    """Change the running instance; what it was comes back after the test."""

    def change(**changes) -> None:
        serve.deploy(write_config(tmp_path / "changed.yaml", serve_config(**changes)))

    yield change
    serve.deploy(write_config(tmp_path / "restored.yaml", serve_config()))
