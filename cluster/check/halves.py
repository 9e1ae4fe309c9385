"""The two halves of a RayService: what runs in the cluster, and what the cluster is.

KubeRay puts a new serveConfigV2 to the running cluster, and makes a second one for a new
rayClusterConfig. Both at once make a cluster that nobody has tried with a split that nobody has
tried: refused here. What does not make a second cluster is as in KubeRay 1.7.0 (utils/util.go,
GenerateHashWithoutReplicasAndWorkersToDelete), and worker groups added at the end.
"""

import copy
import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from cluster.check.fault import ManifestError
from cluster.check.render import ROOT, Manifest, ray_service, render


def halves_changed(old: Manifest, new: Manifest) -> tuple[bool, bool]:
    """Whether the Serve config changed, and whether the change makes a second cluster."""
    return (
        old["spec"].get("serveConfigV2") != new["spec"].get("serveConfigV2"),
        _makes_a_cluster(old["spec"]["rayClusterConfig"], new["spec"]["rayClusterConfig"]),
    )


def check_halves(old: Manifest, new: Manifest) -> str:
    """What the change does, in words. Raises ManifestError for one that touches both halves."""
    config, cluster = halves_changed(old, new)
    if config and cluster:
        raise ManifestError(
            "the change touches serveConfigV2 and rayClusterConfig: apply it in two steps, the "
            "cluster first, each until the RayService is Ready"
        )
    if cluster:
        return "a second cluster, and the old one's end after the deletion delay"
    return "put to the running cluster" if config else "no change of what runs"


def render_at(reference: str, overlay: str) -> Manifest:
    """The RayService of an overlay as of a commit. Raises ManifestError."""
    archive = subprocess.run(
        ["git", "archive", reference, "cluster", "configs"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if archive.returncode:
        raise ManifestError(
            f"git has no cluster/ at {reference}: {archive.stderr.decode().strip()}"
        )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        return ray_service(render(Path(folder) / "cluster" / "overlays" / overlay))


def _makes_a_cluster(old: Manifest, new: Manifest) -> bool:
    before, after = _shape(old), _shape(new)
    groups, grown = before.pop("workerGroupSpecs"), after.pop("workerGroupSpecs")
    return before != after or groups != grown[: len(groups)]


def _shape(cluster: Manifest) -> Manifest:
    shape = copy.deepcopy(cluster)
    shape.pop("upgradeStrategy", None)
    shape.setdefault("workerGroupSpecs", [])
    for group in shape["workerGroupSpecs"]:
        for free in ("replicas", "minReplicas", "maxReplicas", "scaleStrategy"):
            group.pop(free, None)
    for group in (shape["headGroupSpec"], *shape["workerGroupSpecs"]):
        for free in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(free, None)
    return shape
