"""What a manifest names must exist: accounts, secrets, classes, services, ports, rights."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.check import serve_config
from cluster.check.agreement import Objects
from cluster.check.fault import ManifestError
from cluster.check.render import Manifest, of_kind, pod_templates, ray_service

LENT = {"priority": {"system-node-critical", "system-cluster-critical"}}
_CREATED = re.compile(r"create secret generic (\S+) (.+)")


def created_secrets(readme: str) -> dict[str, set[str]]:
    """Secrets that the README has a command for, one to a line, with their keys."""
    readme = readme.replace("\\\n", " ")
    return {
        name: set(re.findall(r"--from-(?:literal|file)=([\w.-]+)=", options))
        for name, options in _CREATED.findall(readme)
    }


def named_things_exist(objects: Objects, base: Objects, secrets: Mapping[str, set[str]]) -> str:
    """Of every pod: ServiceAccount, PriorityClass, Secrets with their keys, ConfigMaps."""
    everything = (*objects, *base)
    accounts = _names(everything, "ServiceAccount")
    classes = _names(everything, "PriorityClass")
    maps = {
        each["metadata"]["name"]: set(each.get("data", {}))
        for each in of_kind(everything, "ConfigMap")
    }
    count = 0
    for label, template in pod_templates(objects):
        pod = template["spec"]
        count += _require(label, "ServiceAccount", pod.get("serviceAccountName"), accounts)
        count += _require(label, "PriorityClass", pod.get("priorityClassName"), classes)
        for name, key in secret_references(pod):
            if name not in secrets or (key is not None and key not in secrets[name]):
                raise ManifestError(
                    f"{label} names Secret {name} {key or ''}: cluster/README.md creates "
                    f"{ {name: sorted(keys) for name, keys in secrets.items()} }"
                )
            count += 1
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                count += _require(label, "ConfigMap", volume["configMap"]["name"], set(maps))
    for each in of_kind(objects, "RayService"):
        options = each["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisPassword"]
        reference = options["valueFrom"]["secretKeyRef"]
        if reference["key"] not in secrets.get(reference["name"], set()):
            raise ManifestError(f"redisPassword names Secret {reference}, which no command creates")
        count += 1
    return f"{count} names"


def secret_references(pod: Manifest) -> Iterator[tuple[str, str | None]]:
    """(Secret, key) of a pod; the key is None where the whole Secret is mounted."""
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for each in container.get("env", []):
            reference = (each.get("valueFrom") or {}).get("secretKeyRef")
            if reference:
                yield reference["name"], reference["key"]
    for volume in pod.get("volumes", []):
        if "secret" in volume:
            yield volume["secret"]["secretName"], None


def disruption_budgets(objects: Objects) -> str:
    """Whole numbers, over pods that exist, below the nodes that are always there."""
    cluster = ray_service(objects)["spec"]["rayClusterConfig"]
    fewest = {
        serve_config.accelerator_of(name): count
        for name, count in serve_config.fewest_gpus().items()
    }
    nodes = {}
    for group in cluster["workerGroupSpecs"]:
        accelerator = (group.get("labels") or {}).get("ray.io/accelerator-type")
        always = max(group["minReplicas"], fewest.get(accelerator, 0) if accelerator else 0)
        nodes[group["groupName"]] = (group["template"]["metadata"]["labels"], always)
    for each in of_kind(objects, "PodDisruptionBudget"):
        name, spec = each["metadata"]["name"], each["spec"]
        least = spec.get("minAvailable")
        if not isinstance(least, int) or "maxUnavailable" in spec:
            raise ManifestError(
                f"PDB {name}: need minAvailable as a whole number; RayClusters have no scale "
                "subresource, so that with anything else no pod may ever be evicted"
            )
        wanted = spec["selector"]["matchLabels"].items()
        found = [always for labels, always in nodes.values() if wanted <= labels.items()]
        if not found:
            raise ManifestError(f"PDB {name} selects no worker group")
        if least >= sum(found):
            raise ManifestError(
                f"PDB {name}: minAvailable {least} of {sum(found)} nodes would hold up every drain"
            )
    return f"{len(of_kind(objects, 'PodDisruptionBudget'))} budgets"


def endpoints(objects: Objects) -> str:
    """The Ingress names KubeRay's Service, each PodMonitor ports of the pods that it selects."""
    service = ray_service(objects)["metadata"]["name"]
    for each in of_kind(objects, "Ingress"):
        for rule in each["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                if backend != {"name": f"{service}-serve-svc", "port": {"number": 8000}}:
                    raise ManifestError(
                        f"the Ingress names {backend}, KubeRay makes {service}-serve-svc"
                    )
    return f"1 backend, {scraped(objects)} scraped ports"


def scraped(objects: Objects) -> int:
    """Ports of PodMonitors: each selects pods, and they have a port of that name."""
    pods = [template for _, template in pod_templates(objects)]
    count = 0
    for monitor in of_kind(objects, "PodMonitor"):
        selected = [
            pod for pod in pods if selects(monitor["spec"]["selector"], pod["metadata"]["labels"])
        ]
        if not selected:
            raise ManifestError(f"PodMonitor {monitor['metadata']['name']} selects no pod")
        for each in monitor["spec"]["podMetricsEndpoints"]:
            for pod in selected:
                ports = {port.get("name") for port in pod["spec"]["containers"][0].get("ports", [])}
                if each["port"] not in ports:
                    raise ManifestError(
                        f"PodMonitor {monitor['metadata']['name']}: no port {each['port']}"
                    )
            count += 1
    return count


def rights(eks: Manifest, objects: Objects, jobs: Objects) -> str:
    """AWS roles are for accounts that exist; serving reads what it serves, and can do no more."""
    accounts = _names(objects, "ServiceAccount")
    statements: dict[str, list[Manifest]] = {}
    for each in eks["iam"]["podIdentityAssociations"]:
        if each["namespace"] != "quantile":
            continue
        if each["serviceAccountName"] not in accounts:
            raise ManifestError(f"eks/cluster.yaml: no ServiceAccount {each['serviceAccountName']}")
        statements[each["serviceAccountName"]] = each["permissionPolicy"]["Statement"]
    serving = statements["ray-serve"]
    if {action for each in serving for action in each["Action"]} != {"s3:GetObject"}:
        raise ManifestError("ray-serve may do more than s3:GetObject")
    readable = {pattern for each in serving for pattern in each["Resource"]}
    for app in serve_config.content()["applications"]:
        checkpoint = app["args"].get("checkpoint", "")
        bucket = checkpoint.removeprefix("s3://").split("/")[0]
        if checkpoint.startswith("s3://") and f"arn:aws:s3:::{bucket}/*" not in readable:
            raise ManifestError(f"ray-serve may not read {checkpoint}")
    written = {
        each["value"]
        for _, template in pod_templates(jobs)
        for container in template["spec"]["containers"]
        for each in container.get("env", [])
        if each["name"] == "BUCKET"
    }
    allowed = {pattern for each in statements["quantile-loadtest"] for pattern in each["Resource"]}
    if not written or {f"arn:aws:s3:::{bucket}/*" for bucket in written} != allowed:
        raise ManifestError(f"load tests write to {written}, their role allows {allowed}")
    return f"{len(statements)} roles"


def hardened(objects: Objects) -> str:
    """No container of a pod is root, gains rights, or has memory without a limit."""
    count = 0
    for label, template in pod_templates(objects):
        pod = template["spec"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            where, security = f"{label} {container['name']}", container.get("securityContext") or {}
            is_root = (
                security.get("runAsUser", (pod.get("securityContext") or {}).get("runAsUser")) == 0
            )
            if is_root and container["name"] != "store-owner":
                raise ManifestError(f"{where} runs as root")
            if security.get("allowPrivilegeEscalation") is not False:
                raise ManifestError(f"{where}: allowPrivilegeEscalation must be false")
            if (security.get("capabilities") or {}).get("drop") != ["ALL"]:
                raise ManifestError(f"{where}: capabilities must drop ALL")
            if "memory" not in (container.get("resources") or {}).get("limits", {}):
                raise ManifestError(f"{where} has no limit of memory")
            count += 1
        if (pod.get("securityContext") or {}).get("runAsNonRoot") is not True:
            raise ManifestError(f"{label}: securityContext.runAsNonRoot must be true")
    return f"{count} containers"


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions") or []:
        have, values = labels.get(each["key"]), each.get("values", [])
        taken = {
            "In": have in values,
            "NotIn": have not in values,
            "Exists": have is not None,
            "DoesNotExist": have is None,
        }
        if not taken[each["operator"]]:
            return False
    return True


def _names(objects: Objects, kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in of_kind(objects, kind)}


def _require(label: str, kind: str, name: str | None, known: set[str]) -> int:
    if name is None or name in LENT["priority"]:
        return 0
    if name not in known:
        raise ManifestError(f"{label} names {kind} {name}; known: {', '.join(sorted(known))}")
    return 1
