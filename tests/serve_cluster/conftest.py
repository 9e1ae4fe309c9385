"""Ray clusters of logical GPUs on this machine, Serve on them, fake engines in the replicas."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.serving.local_serve import SERVE_ENV, LocalServe
from tests.fakes.serve_client import fake_args

MODEL = "m"
PORT = 8160
LABEL = "ray.io/accelerator-type"
SCRIPT = {"ttft_ms": 20, "itl_ms": 20, "output_tokens": 32, "max_num_seqs": 64}
ENVIRONMENT = {
    **SERVE_ENV,
    # This process is a driver of the cluster, and its ray may have been imported without a token.
    "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
    # What takes seconds in production takes one here.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    # The controller says so when a replica has no place for this long.
    "SERVE_SLOW_STARTUP_WARNING_S": "5",
    "SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "5",
}


def variant(name: str, gpu: str, fraction: float, **deployment: Any) -> dict[str, Any]:
    """One application with its share of a GPU, as a config file has it."""
    args = fake_args(MODEL, name, SCRIPT) | {"gpu": {"type": gpu, "fraction": fraction}}
    return variant_application(args, {"graceful_shutdown_timeout_s": 2, **deployment})


def scaled(
    gpu: str, fraction: float, budget: dict[str, int], *, minimum: int, maximum: int, **more: Any
) -> dict[str, Any]:
    """The deployment options of a variant that scales, with times for a test."""
    policy = {"gpu": {"type": gpu, "fraction": fraction}, "budget": budget}
    policy |= {"upscale_delay_s": 1, "downscale_delay_s": 4, "idle_s": 6} | more
    return {
        "autoscaling_config": {
            "min_replicas": minimum,
            "max_replicas": maximum,
            "target_ongoing_requests": 4,
            "look_back_period_s": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "policy": {
                "policy_function": "serve_app.scaling.serve_policy:VariantAutoscaler",
                "policy_kwargs": policy,
            },
        }
    }


def serve_config(*variants: dict[str, Any], sleepers: tuple[str, ...] = ()) -> dict[str, Any]:
    """A Serve config of these variants; the first has all the traffic."""
    shares = {each["name"]: 0 for each in variants} | {variants[0]["name"]: 10_000}
    rules = {"split": shares, "sleepers": list(sleepers)}
    return serve_content(PORT, MODEL, rules, variants)


class ServeOnCluster(LocalServe):
    """Serve on a cluster, and what its public interfaces say of it."""

    def __init__(self, config: dict[str, Any], folder: Path, address: str) -> None:
        self.folder = folder
        log = folder / "serve.log"
        super().__init__(_write(folder, config), log=log, ready_timeout_s=120, address=address)

    def change(self, config: dict[str, Any]) -> None:
        """`serve deploy`."""
        self.deploy(_write(self.folder, config))

    def status(self, name: str) -> dict[str, Any]:
        """What `serve status` says of a variant's deployment."""
        applications = yaml.safe_load(self._serve("status"))["applications"]
        deployment: dict[str, Any] = applications[name]["deployments"]["VariantServer"]
        return deployment

    def running(self, name: str) -> int:
        """Replicas of a variant that serve."""
        count: int = self.status(name)["replica_states"].get("RUNNING", 0)
        return count


def _write(folder: Path, config: dict[str, Any]) -> Path:
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Wait for a true value and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.3)
    return value


@contextmanager
def environment() -> Iterator[None]:
    """What Ray's processes inherit; they are started by this one."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """This process as a driver of the cluster."""
    import ray

    ray.init(address=address, log_to_driver=False, namespace="serve")
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def cluster(*gpus: tuple[str, int]) -> Iterator[str]:
    """Nodes of one GPU type each: `("L4", 2)`; the first is the head. Gives the address."""
    from ray.cluster_utils import Cluster

    with environment():
        (kind, count), *others = gpus
        head = {"num_cpus": 4, "include_dashboard": True, "dashboard_port": 0}
        nodes = Cluster(
            initialize_head=True,
            head_node_args={**head, "num_gpus": count, "labels": {LABEL: kind}},
        )
        try:
            for kind, count in others:
                nodes.add_node(num_cpus=2, num_gpus=count, labels={LABEL: kind})
            yield nodes.address
        finally:
            nodes.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")
