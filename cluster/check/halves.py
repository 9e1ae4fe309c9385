"""The two halves of a RayService: what runs in the cluster, and what the cluster is.

KubeRay puts a new serveConfigV2 to the running cluster, and makes a second one for a new
rayClusterConfig. Both at once make a cluster that nobody has tried with a split that nobody has
tried: refused here. What does not make a second cluster is as in KubeRay 1.7.0 (utils/util.go,
GenerateHashWithoutReplicasAndWorkersToDelete), and worker groups added at the end.
"""

import copy
import shutil
import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.render import ROOT, Manifest, ray_service, render


class MissingAtError(ManifestError):
    """A commit has no such overlay."""


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


def render_at(reference: str, overlay: str, root: Path = ROOT) -> Manifest:
    """The RayService of an overlay as of a commit. Raises ManifestError, a MissingAtError where
    the commit has no such overlay."""
    folder_at = f"{reference}:cluster/overlays/{overlay}"
    if _git(root, "rev-parse", "--verify", folder_at) is None:
        raise MissingAtError(f"git has no cluster/overlays/{overlay} at {reference}")
    archive = subprocess.run(
        ["git", "archive", reference, "cluster", "configs"],
        cwd=root, capture_output=True, check=False,
    )  # fmt: skip
    if archive.returncode:
        raise ManifestError(f"git archive {reference}: {archive.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        return ray_service(render(Path(folder) / "cluster" / "overlays" / overlay))


def check_last_change(overlay: str, root: Path = ROOT) -> str:
    """`check_halves` of what is committed: HEAD against where its branch left main, on main itself
    against the commit before. Raises UncheckedError where git has no such history."""
    before = compared_with(root)
    head = render_at("HEAD", overlay, root)
    try:
        return check_halves(render_at(before, overlay, root), head)
    except MissingAtError as error:
        raise UncheckedError(str(error)) from error


def compared_with(root: Path) -> str:
    """The commit that HEAD is a change of. Raises UncheckedError without one."""
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        raise UncheckedError(f"{root} has no git history: nothing to compare with")
    mains = [_git(root, "rev-parse", "--verify", name) for name in ("main", "origin/main")]
    known = [each for each in mains if each]
    base = None if head in known or not known else _git(root, "merge-base", "HEAD", known[0])
    if base not in (None, head):
        return str(base)
    parent = _git(root, "rev-parse", "--verify", "HEAD~1")
    if parent is None:
        raise UncheckedError("git has no commit before HEAD: fetch two at least (fetch-depth: 2)")
    return parent


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it refuses or is not there."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


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
