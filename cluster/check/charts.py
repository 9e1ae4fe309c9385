"""The table of Helm charts and their values: exact versions, an order that can be installed, and
what the charts' own defaults ask of the rest of cluster/."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.check.fault import ManifestError
from cluster.check.render import CLUSTER, Manifest, of_kind

Charts = list[dict[str, str]]
MONITORS_CRD = "kube-prometheus-stack"
"""It brings the CRD of ServiceMonitors and PodMonitors."""
DEVICE_PLUGIN = "nvidia-device-plugin"
PLUGIN_LOOKS_FOR = {
    "feature.node.kubernetes.io/pci-10de.present": "true",
    "feature.node.kubernetes.io/cpu-model.vendor_id": "NVIDIA",
    "nvidia.com/gpu.present": "true",
}
"""The affinity in the chart's own values (0.18.0): a node needs one of them, or has no plugin."""


def check_charts() -> str:
    """The rules below, on the files of cluster/helm."""
    charts, values = read_charts()
    files = {file.stem for file in (CLUSTER / "helm" / "values").glob("*.yaml")}
    if files != set(values):
        raise ManifestError(f"helm/values has {sorted(files)}, versions.yaml other charts")
    exact(charts, values)
    in_order(charts, values)
    return f"{len(charts)} charts"


def read_charts() -> tuple[Charts, dict[str, Manifest]]:
    """The table, and each chart's values by its name. Raises ManifestError without a file."""
    folder = CLUSTER / "helm"
    charts: Charts = yaml.safe_load((folder / "versions.yaml").read_text())["charts"]
    values = {}
    for each in charts:
        file = folder / "values" / f"{each['name']}.yaml"
        if not file.is_file():
            raise ManifestError(f"helm/versions.yaml: {each['name']} has no {file}")
        values[each["name"]] = yaml.safe_load(file.read_text())
    return charts, values


def exact(charts: Charts, values: Mapping[str, Manifest]) -> None:
    """Raises ManifestError for a range of versions, or a list that replaces a chart's own."""
    for each in charts:
        if not re.fullmatch(r"\d+\.\d+\.\d+", str(each["version"])):
            raise ManifestError(
                f"helm/versions.yaml: {each['name']} {each['version']} is no exact version"
            )
        if "featureGates" in values[each["name"]]:
            raise ManifestError(f"{each['name']}: a list of featureGates replaces the chart's own")


def in_order(charts: Charts, values: Mapping[str, Manifest]) -> None:
    """A chart that asks for a ServiceMonitor comes after the one with its CRD: else Helm stops."""
    there = False
    for each in charts:
        there = there or each["name"] == MONITORS_CRD
        if not there and _monitored(values[each["name"]]):
            raise ManifestError(
                f"helm/versions.yaml: {each['name']} has a ServiceMonitor, whose CRD comes with "
                f"{MONITORS_CRD}: put that one first"
            )


def plugin_finds_nodes(nodes: tuple[Manifest, ...], values: Mapping[str, Manifest]) -> str:
    """Every NodePool of GPUs has a label that the device plugin's affinity looks for."""
    pools = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in of_kind(nodes, "NodePool")
        if "nvidia.com/gpu" in each["spec"]["limits"]
    ]
    if "affinity" in values[DEVICE_PLUGIN]:
        raise ManifestError(f"{DEVICE_PLUGIN}: its values have an affinity; hold NodePools to that")
    for labels in pools:
        if not PLUGIN_LOOKS_FOR.items() & labels.items():
            raise ManifestError(
                f"a NodePool with labels {labels} gets no device plugin, and so no GPU: the chart "
                f"wants one of {PLUGIN_LOOKS_FOR}"
            )
    return f"{len(pools)} pools of GPUs"


def traces_arrive(objects: tuple[Manifest, ...], charts: Charts) -> str:
    """What a collector sends traces to, by a name in the cluster, is a chart in that namespace."""
    there = {(each["name"], each["namespace"]) for each in charts}
    found = []
    for each in of_kind(objects, "ConfigMap"):
        if not each["metadata"]["name"].startswith("otel-collector"):
            continue
        exporters = yaml.safe_load(each["data"]["config.yaml"])["exporters"]
        for name in (exporter["endpoint"] for exporter in exporters.values()):
            host = name.removeprefix("http://").partition(":")[0]
            parts = host.split(".")
            if len(parts) == 2 and (parts[0], parts[1]) not in there:
                raise ManifestError(f"traces go to {name}: no chart {parts[0]} in {parts[1]}")
            found.append(host)
    return ", ".join(found) or "none"


def _monitored(values: Any) -> bool:
    """Whether a ServiceMonitor or PodMonitor is switched on anywhere in the values."""
    if not isinstance(values, dict):
        return False
    return any(
        (name in {"serviceMonitor", "podMonitor"} and bool((each or {}).get("enabled")))
        or _monitored(each)
        for name, each in values.items()
    )
