"""What AWS must give: nodes that may join, vCPUs enough, a listener with a certificate."""

import re

from cluster.check.fault import ManifestError
from cluster.check.render import Manifest, of_kind, ray_service

_QUOTAS = re.compile(r"vCPUs: (\d+) of G, (\d+) of P, (\d+) of standard")
_NOTE = "alb.ingress.kubernetes.io/"


def nodes_may_join(eks: Manifest) -> str:
    """eksctl 0.230 maps the role of Karpenter's nodes in aws-auth alone, which mode API ignores."""
    mode: str = (eks.get("accessConfig") or {}).get("authenticationMode", "API_AND_CONFIG_MAP")
    if "karpenter" in eks and "CONFIG_MAP" not in mode:
        raise ManifestError(
            f"eks/cluster.yaml: authenticationMode {mode}: need API_AND_CONFIG_MAP, or no node of "
            "Karpenter's may join: eksctl lets their role in by the ConfigMap aws-auth"
        )
    return mode


def listeners(objects: tuple[Manifest, ...]) -> str:
    """An HTTPS listener has a certificate: by a host that ACM knows, or by its ARN."""
    found = of_kind(objects, "Ingress")
    for each in found:
        notes, spec = each["metadata"]["annotations"], each["spec"]
        if "HTTPS" not in notes.get(f"{_NOTE}listen-ports", ""):
            raise ManifestError(f"Ingress {each['metadata']['name']} has no HTTPS listener")
        hosts = [rule.get("host") for rule in spec["rules"]]
        hosts += [host for tls in spec.get("tls", []) for host in tls.get("hosts", [])]
        if f"{_NOTE}certificate-arn" not in notes and not any(hosts):
            raise ManifestError(
                f"Ingress {each['metadata']['name']}: no host, no tls and no certificate-arn, so "
                "the controller finds no certificate and makes no listener"
            )
    return ", ".join(rule.get("host", "any") for each in found for rule in each["spec"]["rules"])


def vcpus(instance_type: str) -> int:
    """Of the families here: four per `xlarge`. Raises ManifestError for another form."""
    found = re.fullmatch(r"(?:[gm][5-7][a-z]?|p5)\.(\d*)xlarge", instance_type)
    if not found:
        raise ManifestError(f"how many vCPUs has {instance_type}? see cluster/check/account.py")
    return 4 * int(found[1] or 1)


def quotas(
    readme: str, objects: tuple[Manifest, ...], nodes: tuple[Manifest, ...], eks: Manifest
) -> str:
    """The README asks for vCPUs enough for the largest cluster and the second one of an upgrade,
    each node of its pool's first, smallest type."""
    needed = {"G": 0, "P": 0, "standard": 0}
    for group in eks["managedNodeGroups"]:
        needed["standard"] += group["maxSize"] * vcpus(group["instanceType"])
    for group in ray_service(objects)["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        smallest = _types(group["template"]["spec"]["nodeSelector"], nodes)[0]
        kind = {"g": "G", "p": "P"}.get(smallest[0], "standard")
        needed[kind] += 2 * group["maxReplicas"] * vcpus(smallest)
    asked = _QUOTAS.search(readme)
    if not asked:
        raise ManifestError('README: no "vCPUs: N of G, N of P, N of standard" under "You need"')
    have = dict(zip(needed, map(int, asked.groups()), strict=True))
    if have != needed:
        raise ManifestError(f"README asks for vCPUs {have}, two full clusters take {needed}")
    return ", ".join(f"{kind} {count}" for kind, count in needed.items())


def _types(selector: dict[str, str], nodes: tuple[Manifest, ...]) -> list[str]:
    for pool in of_kind(nodes, "NodePool"):
        template = pool["spec"]["template"]
        if selector.items() <= template["metadata"]["labels"].items():
            types: list[str] = next(
                each["values"]
                for each in template["spec"]["requirements"]
                if each["key"] == "node.kubernetes.io/instance-type"
            )
            return types
    raise ManifestError(f"no NodePool has labels {selector}")
