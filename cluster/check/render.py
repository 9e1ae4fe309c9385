"""What `kubectl kustomize` makes of a folder, and how a manifest is read."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.check.fault import ManifestError, UncheckedError

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
OVERLAYS = ("dev", "staging", "prod", "gpu-poor")
ROOTS = (
    *(f"cluster/overlays/{name}" for name in OVERLAYS),
    "cluster/karpenter",
    "cluster/jobs/preload",
    "cluster/jobs/loadtest",
    "cluster/jobs/rollout",
)
"""Every folder that is applied with `kubectl apply -k`."""

Manifest = dict[str, Any]


def kubectl() -> str:
    """The program. Raises UncheckedError where there is none."""
    found = shutil.which("kubectl")
    if found is None:
        raise UncheckedError("no kubectl on PATH: run .ci/install-kubectl")
    return found


def render(folder: Path) -> list[Manifest]:
    """All objects of a kustomization. Raises ManifestError with kustomize's own words."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ManifestError(f"{folder} does not render: {done.stderr.strip()}")
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@cache
def rendered(root: str) -> tuple[Manifest, ...]:
    """`render` of a folder of this repository, once."""
    return tuple(render(ROOT / root))


def plain_manifests() -> list[tuple[str, Manifest]]:
    """Objects that are applied without kustomize: by file."""
    files = sorted((CLUSTER / "jobs").glob("*.yaml"))
    return [
        (str(file.relative_to(ROOT)), each)
        for file in files
        for each in yaml.safe_load_all(file.read_text())
        if each
    ]


def of_kind(objects: tuple[Manifest, ...] | list[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind."""
    return [each for each in objects if each["kind"] == kind]


def ray_service(objects: tuple[Manifest, ...] | list[Manifest]) -> Manifest:
    """The one RayService. Raises ManifestError where there is not exactly one."""
    found = of_kind(objects, "RayService")
    if len(found) != 1:
        raise ManifestError(f"need one RayService, have {len(found)}")
    return found[0]


def pod_templates(objects: tuple[Manifest, ...] | list[Manifest]) -> list[tuple[str, Manifest]]:
    """Every pod template, by a name to find it: those of workloads and of a RayCluster's groups."""
    found = []
    for each in objects:
        name = f"{each['kind']}/{each['metadata'].get('name', '?')}"
        if each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            found.append((f"{name} head", cluster["headGroupSpec"]["template"]))
            for group in cluster["workerGroupSpecs"]:
                found.append((f"{name} {group['groupName']}", group["template"]))
        elif each["kind"] in {"Job", "Deployment", "StatefulSet", "DaemonSet"}:
            found.append((name, each["spec"]["template"]))
    return found
