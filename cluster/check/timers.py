"""Three autoscalers in series: Serve adds a replica, Ray a pod, Karpenter a node; and back.

Each waits for the one before it, so the waits add up. What the files say is read from them; what
AWS and the image do is assumed, and marked so: nobody has measured it on EKS.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.check.fault import ManifestError
from cluster.check.render import Manifest, of_kind, ray_service
from cluster.check.serve_config import Times
from cluster.check.units import go_duration_s

RAY_UPDATE_S = 5.0
"""Ray's autoscaler looks so often (AUTOSCALER_UPDATE_INTERVAL_S)."""
KARPENTER_BATCH_S = 10.0
"""Karpenter collects pending pods for at most so long (BATCH_MAX_DURATION)."""
NODE_S = 120.0
"""Assumed: from RunInstances to a node that is Ready with its device plugin."""
IMAGE_S = 180.0
"""Assumed: 10 GB of layers, pulled and unpacked in parallel onto NVMe."""
RAY_START_S = 20.0
"""Assumed: `ray start` and the first heartbeat."""
WEIGHTS_S = 60.0
"""Assumed: 16 GB from S3 at 300 MB/s, checked on the way; nothing on a node that has them."""
ENGINE_S = 120.0
"""Assumed: vLLM loads, profiles and captures graphs; warm kernels."""
EMPTYING_S = 310.0
"""Serve waits so long after the last change, and looks every ten seconds, for a node whose replicas
have room on others (RAY_SERVE_NODE_COMPACTION_DELAY_S, Ray's default)."""
NO_FLAP_S = 60.0
"""An empty node waits at least so long for the pod that follows."""


@dataclass(frozen=True)
class Step:
    """One wait of a series, in seconds at most, and where the number is from."""

    what: str
    seconds: float
    source: str


@dataclass(frozen=True)
class Series:
    """Waits that follow each other."""

    name: str
    steps: tuple[Step, ...]

    @property
    def total_s(self) -> float:
        """The bound."""
        return sum(step.seconds for step in self.steps)


def up(times: Times, push_s: float, *, wakes: bool = False) -> Series:
    """From load that one replica more must take to its first answer, on a new node.

    A variant that sleeps is woken by the request itself: no look-back, no delay.
    """
    seen = [
        Step("the mean that is scaled on", times.look_back_s, "look_back_period_s"),
        Step("replicas report", push_s, "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"),
        Step("the policy's delay", times.upscale_delay_s, "upscale_delay_s"),
    ]
    rest = (
        Step("Ray asks for a pod", RAY_UPDATE_S, "Ray's interval"),
        Step("Karpenter asks for a node", KARPENTER_BATCH_S, "Karpenter's batch"),
        Step("EC2, kubelet, device plugin", NODE_S, "assumed"),
        Step("the image", IMAGE_S, "assumed"),
        Step("Ray starts", RAY_START_S, "assumed"),
        Step("the weights", WEIGHTS_S, "assumed"),
        Step("the engine", ENGINE_S, "assumed"),
    )
    return Series("wake" if wakes else "up", (*([] if wakes else seen), *rest))


def down(times: Times, ray_idle_s: float, karpenter_s: float, *, is_left: bool = False) -> Series:
    """From the end of the need for a replica to the end of its node, and of its price.

    `is_left`: replicas are left on more nodes than they need, and Serve moves them first.
    """
    answers = Step("its last answers", times.longest_answer_s, "request_timeout_ms")
    moved = [
        Step("Serve finds a node to empty", EMPTYING_S, "Serve's delay and interval"),
        Step("the weights", WEIGHTS_S, "assumed"),
        Step("the engine", ENGINE_S, "assumed"),
        answers,
    ]
    return Series(
        "down, leftovers" if is_left else "down",
        (
            Step("the mean that is scaled on", times.look_back_s, "look_back_period_s"),
            Step("the policy's delay", times.downscale_delay_s, "downscale_delay_s"),
            answers,
            *(moved if is_left else []),
            Step("Ray calls the node idle", ray_idle_s, "idleTimeoutSeconds"),
            Step("Karpenter calls it empty", karpenter_s, "consolidateAfter"),
        ),
    )


def idle_timeouts(service: Manifest) -> dict[str, float]:
    """Seconds after which Ray gives a node of each group of GPUs back."""
    cluster = service["spec"]["rayClusterConfig"]
    common = cluster["autoscalerOptions"]["idleTimeoutSeconds"]
    return {
        group["groupName"]: float(group.get("idleTimeoutSeconds", common))
        for group in cluster["workerGroupSpecs"]
        if group.get("labels")
    }


def series_of(
    objects: tuple[Manifest, ...], nodes: tuple[Manifest, ...], times: Times
) -> tuple[Series, ...]:
    """Up, wake, down and down with leftovers, the slowest of each. Raises ManifestError for timers
    out of order."""
    service = ray_service(objects)
    idle = idle_timeouts(service)
    pools = {each["metadata"]["name"]: each["spec"] for each in of_kind(nodes, "NodePool")}
    after = {
        name: go_duration_s(spec["disruption"]["consolidateAfter"]) for name, spec in pools.items()
    }
    faults = list(_faults(times, idle, after, service))
    if faults:
        raise ManifestError("; ".join(faults))
    push_s = _environment(service, "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S")
    slowest = max(seconds for seconds in after.values() if seconds is not None)
    idle_s = max(idle.values())
    return (
        up(times, push_s),
        up(times, push_s, wakes=True),
        down(times, idle_s, slowest),
        down(times, idle_s, slowest, is_left=True),
    )


def _faults(
    times: Times, idle: dict[str, float], after: dict[str, float | None], service: Manifest
) -> Iterator[str]:
    least = times.downscale_delay_s + WEIGHTS_S + ENGINE_S
    for group, seconds in idle.items():
        if seconds <= least:
            yield (
                f"group {group}: idleTimeoutSeconds {seconds:.0f} is not above {least:.0f}, the "
                "policy's downscale delay and an engine's start: nodes would come and go"
            )
    for pool, empty_s in after.items():
        if empty_s is None or empty_s < NO_FLAP_S:
            yield f"NodePool {pool}: consolidateAfter {empty_s}: need {NO_FLAP_S:.0f}s or more"
    waits_s = go_duration_s(service["metadata"]["annotations"]["ray.io/initializing-timeout"])
    slowest_s = up(times, 0, wakes=True).total_s
    if waits_s is None or waits_s < 2 * slowest_s:
        yield (
            f"ray.io/initializing-timeout {waits_s} is not twice the {slowest_s:.0f} s that a node "
            "with an engine may take; when it is over the RayService must be made anew"
        )


def _environment(service: Manifest, name: str) -> float:
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    values = {each["name"]: each.get("value") for each in head["containers"][0]["env"]}
    if values.get(name) is None:
        raise ManifestError(f"the head's container lacks {name}")
    return float(values[name])
