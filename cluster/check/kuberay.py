"""What KubeRay 1.7.0 refuses in a RayService, though its schema lets it pass.

Ported from ray-operator/controllers/ray/utils/validation.go at v1.7.0: the rules of RayService,
RayCluster and incremental upgrades that apply with the default feature gates.
"""

import re
from collections.abc import Iterator
from typing import Any

from cluster.check.fault import ManifestError
from cluster.check.render import Manifest
from cluster.check.units import go_duration_s

MAX_NAME = 47
"""MaxRayClusterNameLength 53, less the 6 of the suffix that each cluster of a RayService gets."""
UPGRADES = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
TIMEOUT = "ray.io/initializing-timeout"
TOKEN_SINCE, PRIORITY_SINCE = (2, 52, 0), (2, 56, 0)
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_MANAGED = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")


def check_ray_service(service: Manifest) -> None:
    """Raises ManifestError with everything that the operator would refuse."""
    faults = [*_metadata(service["metadata"]), *_service(service["spec"]), *_cluster(service)]
    if faults:
        raise ManifestError("KubeRay refuses the RayService: " + "; ".join(faults))


def version(text: str) -> tuple[int, ...] | None:
    """`2.60.0` as numbers; None for another form."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", text) else None


def _metadata(metadata: Manifest) -> Iterator[str]:
    name = metadata["name"]
    if len(name) > MAX_NAME or not _DNS1035.fullmatch(name):
        yield f"metadata.name {name!r}: need a DNS 1035 label of at most {MAX_NAME} characters"
    timeout = (metadata.get("annotations") or {}).get(TIMEOUT)
    if timeout and not (go_duration_s(timeout) or 0) > 0:
        yield f"{TIMEOUT} {timeout!r}: need a duration such as 60m, or whole seconds"


def _service(spec: Manifest) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy") or {}
    kind = strategy.get("type")
    if kind is not None and kind not in UPGRADES:
        yield f"upgradeStrategy.type {kind!r}: need one of {', '.join(UPGRADES)}"
    if (spec.get("rayClusterDeletionDelaySeconds") or 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    head = spec["rayClusterConfig"]["headGroupSpec"]
    if ((head.get("headService") or {}).get("metadata") or {}).get("name"):
        yield "headGroupSpec.headService.metadata.name should not be set"
    if kind == UPGRADES[2]:
        yield from _incremental(strategy.get("clusterUpgradeOptions"), spec["rayClusterConfig"])


def _incremental(options: Manifest | None, cluster: Manifest) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    if options is None:
        yield "an incremental upgrade needs clusterUpgradeOptions"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent")
    if not 0 <= surge <= 100:
        yield f"maxSurgePercent {surge}: need 0 to 100"
    if step is None or not 0 <= step <= 100 or step > surge:
        yield f"stepSizePercent {step}: need 0 to maxSurgePercent {surge}"
    if not (options.get("intervalSeconds") or 0) > 0:
        yield "intervalSeconds must be above 0"
    if not options.get("gatewayClassName"):
        yield "gatewayClassName is missing"


def _cluster(service: Manifest) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    annotations = service["metadata"].get("annotations") or {}
    head, groups = cluster["headGroupSpec"], cluster.get("workerGroupSpecs") or []
    autoscaler = cluster.get("autoscalerOptions") or {}
    is_v2 = bool(cluster.get("enableInTreeAutoscaling")) and autoscaler.get("version") == "v2"
    ray = version(cluster.get("rayVersion", ""))
    for name, group in [("head", head), *((each["groupName"], each) for each in groups)]:
        yield from _group(name, group, is_v2=is_v2)
    for group in groups:
        yield from _worker(group, cluster, is_v2=is_v2, ray=ray)
    if (autoscaler.get("idleTimeoutSeconds") or 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    yield from _fault_tolerance(cluster, annotations)
    yield from _authentication(cluster.get("authOptions") or {}, ray)
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if cluster.get(gated):
            yield f"{gated} needs a feature gate that is off by default"
    if (cluster.get("upgradeStrategy") or {}).get("type"):
        yield "rayClusterConfig.upgradeStrategy is not for clusters of a RayService"


def _group(name: str, group: Manifest, *, is_v2: bool) -> Iterator[str]:
    started = group.get("rayStartParams") or {}
    pod = group["template"]["spec"]
    if not pod.get("containers"):
        yield f"{name}: no container"
    if group.get("resources") and any(started.get(key) for key in _RESOURCES):
        yield f"{name}: resources are set in rayStartParams and in `resources`; use one"
    if "labels" in started:
        yield f"{name}: rayStartParams.labels is not supported; use the group's `labels`"
    for key, value in (group.get("labels") or {}).items():
        prefix, _, last = key.rpartition("/")
        if (
            not last
            or not _LABEL.fullmatch(last)
            or len(prefix) > 253
            or not _LABEL.fullmatch(value)
        ):
            yield f"{name}: label {key}={value} is not Kubernetes' syntax"
    if is_v2 and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: restartPolicy must be Never or unset with autoscaler v2"


def _worker(
    group: Manifest, cluster: Manifest, *, is_v2: bool, ray: tuple[int, ...] | None
) -> Iterator[str]:
    name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
    autoscaled = bool(cluster.get("enableInTreeAutoscaling"))
    if not autoscaled and (least is None or most is None):
        yield f"{name}: minReplicas and maxReplicas are needed without the autoscaler"
    if (least or 0) < 0 or (most or 0) < 0:
        yield f"{name}: negative replicas"
    if least is not None and most is not None and least > most:
        yield f"{name}: minReplicas {least} above maxReplicas {most}"
    idle = group.get("idleTimeoutSeconds")
    if idle is not None and (idle < 0 or not is_v2):
        yield f"{name}: idleTimeoutSeconds {idle} needs autoscaler v2 and no negative number"
    if group.get("priority") and (ray is None or ray < PRIORITY_SINCE or not is_v2):
        yield f"{name}: priority needs rayVersion 2.56.0 or later and autoscaler v2"
    if group.get("suspend") and autoscaled:
        yield f"{name}: cannot be suspended with the autoscaler"


def _fault_tolerance(cluster: Manifest, annotations: dict[str, Any]) -> Iterator[str]:
    head = cluster["headGroupSpec"]
    containers = head["template"]["spec"].get("containers") or [{}]
    environment = {each["name"] for each in containers[0].get("env", [])}
    started = head.get("rayStartParams") or {}
    if "redis-username" in started or "REDIS_USERNAME" in environment:
        yield "the name of Redis' user belongs into gcsFaultToleranceOptions.redisUsername"
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in environment:
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    if annotations.get("ray.io/ft-enabled"):
        yield "ray.io/ft-enabled and gcsFaultToleranceOptions are both set"
    if annotations.get("ray.io/external-storage-namespace"):
        yield "ray.io/external-storage-namespace and gcsFaultToleranceOptions are both set"
    if started.get("redis-password"):
        yield "rayStartParams.redis-password: use gcsFaultToleranceOptions.redisPassword"
    yield from (
        f"the head's {name}: use gcsFaultToleranceOptions"
        for name in _MANAGED
        if name in environment
    )
    if options.get("backend") == "rocksdb":
        yield "gcsFaultToleranceOptions.backend rocksdb needs a feature gate that is off by default"
    elif options.get("storage"):
        yield "gcsFaultToleranceOptions.storage is for rocksdb"


def _authentication(options: Manifest, ray: tuple[int, ...] | None) -> Iterator[str]:
    if options.get("mode") == "token" and (ray is None or ray < TOKEN_SINCE):
        yield "authOptions.mode token needs rayVersion, 2.52.0 or later"
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is not for RayServices"
