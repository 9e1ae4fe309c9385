"""A real Ray Serve instance through its own CLI, HAProxy ingress on, fake engines behind."""

from pathlib import Path

import psutil
import pytest
import yaml

from serve_app.serving.local_serve import LocalServe

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
    args = {"model": MODEL, "ingress_url": f"http://127.0.0.1:{PORT}", **(router_args or {})}
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": "serve_app.app:router",
        "args": args,
        "deployments": [
            {
                "name": "VariantRouter",
                "num_replicas": routers,
                "user_config": {"split": shares, "fallback": list(fallback), **user_config},
            }
        ],
    }
    variants = [
        {
            "name": name,
            "route_prefix": f"/variants/{name}",
            "import_path": "serve_app.app:variant",
            "deployments": [
                {"name": "VariantServer", "num_replicas": (replicas or {}).get(name, 1)}
            ],
            "args": {
                "model": MODEL,
                "name": name,
                "checkpoint": "none",
                "method": METHODS.get(name, "awq"),
                "engine": {"kind": "fake", "fake": script},
            },
        }
        for name, script in SCRIPTS.items()
    ]
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": PORT},
        "applications": [router, *variants],
    }


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
