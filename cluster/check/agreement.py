"""What two files of the cluster must agree on: versions, times, GPUs, networks, environment."""

import ipaddress
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

from cluster.check import serve_config
from cluster.check.fault import ManifestError
from cluster.check.render import CLUSTER, ROOT, Manifest, of_kind, pod_templates, ray_service
from cluster.check.units import attributes, go_duration_s

Objects = tuple[Manifest, ...]
ACCELERATOR = "ray.io/accelerator-type"


def ray_pin() -> str:
    """The Ray of constraints.txt."""
    return pin("ray")


def pin(package: str) -> str:
    """The version of a package in constraints.txt. Raises ManifestError where it has none."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    if not found:
        raise ManifestError(f"constraints.txt does not pin {package}")
    return found[1]


def versions(objects: Objects) -> str:
    """The tag of every image of ours, rayVersion and the pin are one Ray."""
    pinned = ray_pin()
    declared = ray_service(objects)["spec"]["rayClusterConfig"]["rayVersion"]
    ours = {each for each in images(objects) if re.search(r"(^|/)quantile", each)}
    for image in ours:
        tagged = re.search(r":[\w.]+-ray(\d+\.\d+\.\d+)$", image)
        if tagged is None and "@sha256:" not in image:
            raise ManifestError(
                f"{image}: need a tag VERSION-rayX.Y.Z (cluster/image), or a digest"
            )
        if tagged and tagged[1] != pinned:
            raise ManifestError(f"{image} has Ray {tagged[1]}, constraints.txt {pinned}")
    if declared != pinned:
        raise ManifestError(f"rayVersion is {declared}, constraints.txt has {pinned}")
    return f"Ray {pinned} in {len(ours)} image(s)"


def images(objects: Objects) -> set[str]:
    """The images of all containers."""
    return {
        container["image"]
        for _, template in pod_templates(objects)
        for container in _containers(template)
    }


def image_table() -> list[dict[str, str]]:
    """Names and tags of cluster/image."""
    loaded = yaml.safe_load((CLUSTER / "image" / "kustomization.yaml").read_text())
    table: list[dict[str, str]] = loaded["images"]
    return table


def one_file(objects: Objects) -> str:
    """serveConfigV2 is configs/prod.yaml, byte for byte."""
    have = ray_service(objects)["spec"]["serveConfigV2"]
    if have != serve_config.FILE.read_text("utf-8"):
        raise ManifestError("spec.serveConfigV2 is not configs/prod.yaml: components/serve-config")
    return f"{len(have)} bytes"


def gpus(objects: Objects, *, whole_budget: bool) -> str:
    """The worker groups hold the fewest replicas; with `whole_budget`, all that policies share."""
    config = serve_config.content()
    have, per_node = _capacity(objects)
    needed = serve_config.fewest_gpus()
    wanted = {
        serve_config.accelerator_of(name): name for name in needed | serve_config.budget(config)
    }
    if missing := sorted(set(wanted) - set(have)):
        raise ManifestError(f"no worker group with {ACCELERATOR} {', '.join(missing)}")
    counts = {wanted[label]: have[label] for label in wanted}
    problem = serve_config.fits(counts, {wanted[label]: per_node[label] for label in wanted})
    if problem:
        raise ManifestError(f"the fewest replicas do not fit the worker groups: {problem}")
    short = {
        name: count
        for name, count in serve_config.budget(config).items()
        if count > counts.get(name, 0)
    }
    if short and whole_budget:
        raise ManifestError(f"the policies' budget {short} is above the groups' {counts}")
    text = ", ".join(f"{name} {needed.get(name, 0)} of {counts[name]}" for name in sorted(counts))
    return text + (f"; beyond it pending: {short}" if short else "")


def routers(objects: Objects) -> str:
    """The router's replicas fit the nodes with CPUs, and no place is on the head or beside GPUs;
    the fewest are on more than one node."""
    deployment = serve_config.router(serve_config.content())
    each = float((deployment.get("ray_actor_options") or {}).get("num_cpus", 0))
    if each <= 0:
        raise ManifestError(
            "configs/prod.yaml: VariantRouter needs ray_actor_options {num_cpus: 1}: a replica "
            "that asks for no CPU may be put on the head"
        )
    fewest = deployment["autoscaling_config"]["min_replicas"]
    per_node = deployment.get("max_replicas_per_node", fewest)
    if per_node >= fewest:
        raise ManifestError(
            f"configs/prod.yaml: all {fewest} routers may be on one node, and end with it: set "
            f"max_replicas_per_node below min_replicas, have {per_node}"
        )
    cluster = ray_service(objects)["spec"]["rayClusterConfig"]
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        raise ManifestError('the head must have rayStartParams num-cpus: "0"')
    room = 0
    for group in cluster["workerGroupSpecs"]:
        cpus = float(group["rayStartParams"]["num-cpus"])
        if group.get("labels") and cpus:
            raise ManifestError(
                f"group {group['groupName']} offers {cpus:g} CPUs: routers would keep GPUs busy"
            )
        room += min(per_node, int(cpus // each)) * group["maxReplicas"]
    most = deployment["autoscaling_config"]["max_replicas"]
    if room < most:
        raise ManifestError(f"{most} routers of {each:g} CPU, room for {room}: raise maxReplicas")
    return f"{most} of {each:g} CPU, {per_node} per node, room for {room}"


def endings(objects: Objects) -> str:
    """Nothing is killed before what is in it has ended: each wait is longer than the one inside."""
    times = serve_config.times(serve_config.content())
    service = ray_service(objects)
    for label, template in pod_templates((service,)):
        pod = template["spec"]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        waits = (
            float(command[-1])
            if command[0] == "leave-cluster"
            else times.longest_graceful_shutdown_s
        )
        _rising(
            label,
            ("longest answer", times.longest_answer_s),
            ("drain_s", times.drain_s),
            ("graceful_shutdown_timeout_s", times.graceful_shutdown_s),
        )
        _rising(
            label,
            ("graceful_shutdown_timeout_s", times.longest_graceful_shutdown_s - 0.001),
            ("preStop", waits),
            ("terminationGracePeriodSeconds", pod["terminationGracePeriodSeconds"]),
        )
    longest = ("longest answer", times.longest_answer_s)
    delay = service["spec"]["rayClusterDeletionDelaySeconds"]
    _rising("RayService", longest, ("rayClusterDeletionDelaySeconds", delay))
    hard_stop = environment(service)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]
    _rising("HAProxy", longest, ("HARD_STOP_AFTER_S", float(hard_stop)))
    [ingress] = of_kind(objects, "Ingress")
    notes = ingress["metadata"]["annotations"]
    for name, key in (("load-balancer", "idle_timeout"), ("target-group", "deregistration_delay")):
        have = attributes(notes[f"alb.ingress.kubernetes.io/{name}-attributes"])
        _rising("ALB", longest, (key, float(have[f"{key}.timeout_seconds"])))
    return f"answer {times.longest_answer_s:g} < stop {times.graceful_shutdown_s:g} < pod's grace"


def same_environment(objects: Objects) -> str:
    """Every Ray container has the HAProxy settings of `make serve`, and all have the same."""
    lines = re.findall(r"^export (RAY_SERVE_\w+) \?= (.+)$", (ROOT / "Makefile").read_text(), re.M)
    wanted = {name: value for name, value in lines if "$" not in value}
    for label, template in pod_templates((ray_service(objects),)):
        have = {
            each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]
        }
        for name, value in wanted.items():
            if have.get(name) != value:
                raise ManifestError(
                    f"{label}: {name} is {have.get(name)}, the Makefile has {value}"
                )
        if have.get("RAY_SERVE_HAPROXY_BINARY_PATH") is None:
            raise ManifestError(f"{label}: RAY_SERVE_HAPROXY_BINARY_PATH is missing")
    return f"{len(wanted)} variables as in the Makefile"


def networks(objects: Objects, eks: Manifest) -> str:
    """The NetworkPolicy lets in the VPC's public subnets, where an ALB is, and Redis in the VPC."""
    vpc = ipaddress.ip_network(eks["vpc"]["cidr"])
    zones = len(eks["availabilityZones"])
    public = [str(net) for net in list(vpc.subnets(new_prefix=19))[:zones]]
    [policy] = [
        each for each in of_kind(objects, "NetworkPolicy") if each["metadata"]["name"] == "ray"
    ]
    blocks = [
        peer["ipBlock"]["cidr"]
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if "ipBlock" in peer
    ]
    if sorted(blocks) != sorted(public):
        raise ManifestError(
            f"NetworkPolicy ray lets in {blocks}, eksctl's public subnets are {public}"
        )
    outward = [
        peer["ipBlock"]["cidr"]
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer and {"port": 6379, "protocol": "TCP"} in _ports(rule)
    ]
    if str(vpc) not in outward:
        raise ManifestError(
            f"NetworkPolicy ray: Redis is looked for in {outward}, the VPC is {vpc}"
        )
    return f"{', '.join(public)}"


def node_pools(objects: Objects, nodes: Objects) -> str:
    """Every GPU group has nodes to land on, with room for both clusters of an upgrade."""
    service = ray_service(objects)
    doubled = 1 if service["spec"]["upgradeStrategy"]["type"] == "None" else 2
    pools = {
        label: each["spec"]
        for each in of_kind(nodes, "NodePool")
        for label in [each["spec"]["template"]["metadata"]["labels"].get("quantile.dev/gpu")]
        if label
    }
    total = 0
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        label = (group.get("labels") or {}).get(ACCELERATOR)
        if label is None:
            continue
        name, pod = group["groupName"], group["template"]["spec"]
        if pod["nodeSelector"].get("quantile.dev/gpu") != label or label not in pools:
            raise ManifestError(
                f"group {name}: no NodePool labels its nodes quantile.dev/gpu {label}"
            )
        pool, most = pools[label], group["maxReplicas"] * _gpus(group) * doubled
        total += most
        if int(pool["limits"]["nvidia.com/gpu"]) < most:
            raise ManifestError(f"group {name} may take {most} GPUs, its NodePool gives fewer")
        _require_tolerated(name, pod, pool["template"]["spec"]["taints"])
        _require_grace(name, pod, pool["template"]["spec"])
        capacity = next(
            each["values"]
            for each in pool["template"]["spec"]["requirements"]
            if each["key"] == "karpenter.sh/capacity-type"
        )
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [asked] = terms["nodeSelectorTerms"][0]["matchExpressions"]
        if not set(asked["values"]) <= set(capacity):
            raise ManifestError(f"group {name} asks for {asked['values']}, its pool has {capacity}")
    [quota] = of_kind(objects, "ResourceQuota")
    if int(quota["spec"]["hard"]["requests.nvidia.com/gpu"]) < total:
        raise ManifestError(f"the quota is below the {total} GPUs of the groups")
    return f"{total} GPUs at most, an upgrade included"


def environment(service: Manifest) -> dict[str, Any]:
    """Plain variables of the head's container."""
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    return {each["name"]: each.get("value") for each in head["containers"][0]["env"]}


def eks_config() -> Manifest:
    """cluster/eks/cluster.yaml."""
    loaded: Manifest = yaml.safe_load((CLUSTER / "eks" / "cluster.yaml").read_text())
    return loaded


def _capacity(objects: Objects) -> tuple[dict[str, int], dict[str, int]]:
    total: dict[str, int] = {}
    per_node: dict[str, int] = {}
    for group in ray_service(objects)["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        label = (group.get("labels") or {}).get(ACCELERATOR)
        if label:
            per_node[label] = _gpus(group)
            total[label] = total.get(label, 0) + group["maxReplicas"] * per_node[label]
    return total, per_node


def _gpus(group: Manifest) -> int:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    count = int(limits["nvidia.com/gpu"])
    if group["rayStartParams"].get("num-gpus", str(count)) != str(count):
        raise ManifestError(f"group {group['groupName']}: num-gpus is not the limit's {count}")
    return count


def _require_tolerated(name: str, pod: Manifest, taints: list[Manifest]) -> None:
    tolerated = {each["key"] for each in pod.get("tolerations", [])}
    if missing := {taint["key"] for taint in taints} - tolerated:
        raise ManifestError(f"group {name} does not tolerate {', '.join(missing)} of its nodes")


def _require_grace(name: str, pod: Manifest, node: Manifest) -> None:
    node_s = go_duration_s(node["terminationGracePeriod"])
    if node_s is None or node_s <= pod["terminationGracePeriodSeconds"]:
        raise ManifestError(f"group {name}: its NodePool's terminationGracePeriod ends pods early")


def _rising(where: str, *steps: tuple[str, float]) -> None:
    for (inner, shorter), (outer, longer) in pairwise(steps):
        if not shorter < longer:
            raise ManifestError(f"{where}: {outer} {longer:g} s is not above {inner} {shorter:g} s")


def _ports(rule: Manifest) -> Iterator[dict[str, Any]]:
    return (
        {"port": each["port"], "protocol": each.get("protocol", "TCP")} for each in rule["ports"]
    )


def _containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
