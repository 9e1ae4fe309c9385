"""What KubeRay makes of a RayService: pods, each with its environment and its `ray start`.

Written after KubeRay's own code (ray-operator, controllers/ray/common/pod.go, 1.7.0) for the fields
that our manifest uses; the manifest is the one that is applied.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.check.render import CLUSTER

Object = dict[str, Any]
NAMESPACE, NAME = "quantile", "quantile"
HEAD_GROUP = "headgroup"
GCS_PORT, DASHBOARD_PORT, INGRESS_PORT = 6379, 8265, 8000
_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def ray_service() -> Object:
    """`cluster/base/rayservice.yaml`."""
    loaded: Object = yaml.safe_load((CLUSTER / "base" / "rayservice.yaml").read_text("utf-8"))
    return loaded


def ray_cluster(service: Object, *, idle_s: float) -> Object:
    """The RayCluster that KubeRay makes; nodes are given back after `idle_s`, else as written."""
    spec = copy.deepcopy(service["spec"]["rayClusterConfig"])
    for group in spec["workerGroupSpecs"]:
        group["scaleStrategy"] = {}  # what Go writes of a struct that was not set
        if "idleTimeoutSeconds" in group:
            group["idleTimeoutSeconds"] = idle_s
    spec["autoscalerOptions"]["idleTimeoutSeconds"] = idle_s
    metadata = {"name": NAME, "namespace": NAMESPACE, "uid": "drill", "resourceVersion": "1"}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


def groups(cluster: Object) -> dict[str, Object]:
    """Specs by group, the head's first."""
    spec = cluster["spec"]
    workers = {each["groupName"]: each for each in spec["workerGroupSpecs"]}
    return {HEAD_GROUP: spec["headGroupSpec"], **workers}


def ray_start(cluster: Object, group: str, head_ip: str) -> list[str]:
    """The command of a pod's container, as words; `$NAME` is for the pod's shell to fill in."""
    spec = groups(cluster)[group]
    limits = _container(spec)["resources"].get("limits", {})
    params = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    params |= spec["rayStartParams"]
    if "memory" in limits:
        params.setdefault("memory", str(_bytes(limits["memory"])))
    if "nvidia.com/gpu" in limits:
        params.setdefault("num-gpus", limits["nvidia.com/gpu"])
    if labels := spec.get("labels"):
        params["labels"] = ",".join(f"{name}={value}" for name, value in labels.items())
    words = ["ray", "start", "--block"]
    if group == HEAD_GROUP:
        words.append("--head")
        if cluster["spec"].get("enableInTreeAutoscaling"):
            words.append("--no-monitor")
        if cluster["spec"].get("gcsFaultToleranceOptions"):
            params["redis-password"] = "$REDIS_PASSWORD"
    else:
        params.setdefault("address", f"{head_ip}:{GCS_PORT}")
    return [*words, *(f"--{name}={value}" for name, value in params.items())]


def environment(
    cluster: Object, group: str, pod: str, head_ip: str, secrets: Mapping[str, str]
) -> dict[str, str]:
    """A pod's environment: the manifest's, with `secrets` by the variables that name one, and
    what KubeRay adds. A secret that is not among `secrets` is a KeyError."""
    spec = groups(cluster)[group]
    entries: Sequence[Object] = _container(spec)["env"]
    ours = {each["name"]: each.get("value") or secrets[each["name"]] for each in entries}
    is_head = group == HEAD_GROUP
    added = {
        "RAY_CLUSTER_NAME": NAME,
        "RAY_CLOUD_INSTANCE_ID": pod,
        "RAY_NODE_TYPE_NAME": group,
        "RAY_ADDRESS": f"{'127.0.0.1' if is_head else head_ip}:{GCS_PORT}",
        "RAY_PORT": str(GCS_PORT),
        "RAY_timeout_ms_task_wait_for_death_info": "0",
        "RAY_gcs_server_request_timeout_seconds": "5",
        "RAY_SERVE_KV_TIMEOUT_S": "5",
        "RAY_AUTH_MODE": cluster["spec"]["authOptions"]["mode"],
        "RAY_AUTH_TOKEN": secrets["RAY_AUTH_TOKEN"],
    }
    if is_head and cluster["spec"].get("enableInTreeAutoscaling"):
        added |= {"RAY_enable_autoscaler_v2": "true", "RAY_HEAD_POD_NAME": pod}
    storage = cluster["spec"].get("gcsFaultToleranceOptions")
    if storage and is_head:
        added["RAY_REDIS_ADDRESS"] = storage["redisAddress"]
        added["REDIS_PASSWORD"] = secrets["REDIS_PASSWORD"]
        added["RAY_external_storage_namespace"] = cluster["metadata"]["uid"]
    elif storage:
        added["RAY_gcs_rpc_server_reconnect_timeout_s"] = "600"
    return {**added, **ours}


@dataclass(frozen=True)
class Pod:
    """A pod that is there: its name, its group, its address."""

    name: str
    group: str
    ip: str

    def as_object(self) -> Object:
        """What the API server tells of it."""
        kind = "head" if self.group == HEAD_GROUP else "worker"
        labels = {"ray.io/cluster": NAME, "ray.io/node-type": kind, "ray.io/group": self.group}
        container = {"name": f"ray-{kind}", "state": {"running": {}}}
        return {
            "metadata": {"name": self.name, "labels": labels, "resourceVersion": "1"},
            "status": {"phase": "Running", "podIP": self.ip, "containerStatuses": [container]},
        }


def changes(cluster: Object, pods: Sequence[Pod]) -> tuple[list[str], list[str]]:
    """What KubeRay does next: the groups of pods to be made, the names of pods to be deleted.

    Pods that the autoscaler names go first; then a group has as many as its `replicas` say.
    """
    make, delete = [], []
    if not any(pod.group == HEAD_GROUP for pod in pods):
        make.append(HEAD_GROUP)
    for name, spec in groups(cluster).items():
        if name == HEAD_GROUP:
            continue
        named = set(spec["scaleStrategy"].get("workersToDelete") or ())
        mine = [pod.name for pod in pods if pod.group == name]
        gone = [pod for pod in mine if pod in named]
        kept = [pod for pod in mine if pod not in named]
        wanted = min(max(spec["replicas"], spec["minReplicas"]), spec["maxReplicas"])
        delete += gone + kept[wanted:]
        make += [name] * (wanted - len(kept))
    return make, delete


def patched(target: Object, operations: Sequence[Object]) -> Object:
    """A copy with a JSON patch of `replace` operations carried out (RFC 6902).

    Raises ValueError for another operation, and for a path that is not there, as a server would.
    """
    result = copy.deepcopy(target)
    for operation in operations:
        *parents, last = operation["path"].removeprefix("/").split("/")
        place: Any = result
        try:
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            if operation["op"] != "replace" or last not in place:
                raise ValueError(f"not understood, or not there: {operation}")
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"there is no {operation['path']}: {error!r}") from None
        place[last] = operation["value"]
    return result


def _container(spec: Object) -> Object:
    container: Object = spec["template"]["spec"]["containers"][0]
    return container


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _SUFFIXES[quantity[-2:]]
