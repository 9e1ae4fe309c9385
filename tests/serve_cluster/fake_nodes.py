"""A Ray cluster whose autoscaler starts and ends nodes on this machine.

Ray's own `AutoscalingCluster`, without what it does to others: its start and end are
`ray stop --force`, which kills every Ray process of the machine, and its wheel lacks the file of
defaults that it reads.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import AutoscalingCluster

from serve_app.serving.ports import free_port

HEAD = "ray.head.default"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
MAPPINGS = ("auth", "docker", "file_mounts")
LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
START_TIMEOUT_S = 60.0


class FakeNodes(AutoscalingCluster):
    """One head without GPUs; nodes of the given types come and go."""

    def __init__(self, node_types: dict[str, Any], folder: Path, *, idle_s: float) -> None:
        super().__init__(
            {"CPU": 4}, node_types, autoscaler_v2=True, idle_timeout_minutes=idle_s / 60
        )
        self.address = ""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def _generate_config(
        self, head_resources: Any, worker_node_types: Any, **settings: Any
    ) -> dict[str, Any]:
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        settings.pop("autoscaler_v2")
        return {
            "cluster_name": "fake_multinode",
            "max_workers": 8,
            "provider": {
                "type": "external",  # as fake_multinode, without its file of defaults
                "module": PROVIDER,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "available_node_types": {**worker_node_types, HEAD: head},
            "head_node_type": HEAD,
            "upscaling_speed": 1.0,
            **{key: {} for key in MAPPINGS},
            **{key: [] for key in LISTS},
            **settings,
        }

    def start(self, *_: Any, **__: Any) -> None:
        """Start the head; its autoscaler starts the rest."""
        port = free_port()
        self.address = f"{get_node_ip_address()}:{port}"
        self._config["provider"]["gcs_address"] = self.address
        config = self._folder / "nodes.json"
        config.write_text(json.dumps(self._config))
        log = self._folder / "ray.log"
        command = ["ray", "start", "--head", "--block", f"--autoscaling-config={config}"]
        command += ["--num-cpus=4", f"--port={port}", f"--dashboard-port={free_port()}"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--object-store-memory=150000000"],
                env={
                    **os.environ,
                    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                    "RAY_FAKE_CLUSTER": "1",
                    "RAY_enable_autoscaler_v2": "1",
                    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while f"--address='{self.address}'" not in log.read_text():
            assert self._process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def shutdown(self) -> None:
        """End the head and every node that was started from it, and nothing else."""
        if self._process is None:
            return
        started = [psutil.Process(self._process.pid)]
        started += started[0].children(recursive=True)
        started += [each for each in psutil.process_iter() if self._is_ours(each)]
        for process in started:
            if process.is_running():
                process.terminate()
        _, alive = psutil.wait_procs(started, timeout=3)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=10)

    def _is_ours(self, process: psutil.Process) -> bool:
        """Ray's daemons leave the session they were started in; they all know the GCS's address."""
        try:
            return any(self.address in word for word in process.cmdline())
        except psutil.Error:
            return False


@contextmanager
def fake_nodes(node_types: dict[str, Any], folder: Path, *, idle_s: float) -> Iterator[FakeNodes]:
    """The cluster, ended however the block is left."""
    nodes = FakeNodes(node_types, folder, idle_s=idle_s)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.shutdown()
