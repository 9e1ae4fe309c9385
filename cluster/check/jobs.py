"""Jobs and the preload: they end, restart when their config changes, and name what is served."""

import json
import re

from cluster.check import serve_config
from cluster.check.fault import ManifestError
from cluster.check.render import Manifest, of_kind

_NAME = re.compile(r"s3://[\w./-]+@[0-9a-f]{64}")


def jobs_end(objects: tuple[Manifest, ...]) -> str:
    """Each Job has a deadline, so that whoever waits for its end sees one."""
    found = of_kind(objects, "Job")
    for each in found:
        if not each["spec"].get("activeDeadlineSeconds"):
            name = each["metadata"].get("name") or each["metadata"]["generateName"]
            raise ManifestError(f"Job {name} has no activeDeadlineSeconds: scripts/wait-job.sh")
    return f"{len(found)} Jobs"


def names_are_served(objects: tuple[Manifest, ...]) -> str:
    """A checkpoint that a Job names by its digest is one of configs/prod.yaml."""
    served = {app["args"].get("checkpoint") for app in serve_config.content()["applications"]}
    named = set(
        _NAME.findall(json.dumps([each for each in objects if each["kind"] != "ConfigMap"]))
    )
    if unknown := sorted(named - served):
        raise ManifestError(f"{', '.join(unknown)}: configs/prod.yaml serves other names")
    return f"{len(named)} names"


def restarts_with_its_config(objects: tuple[Manifest, ...]) -> str:
    """The preload's ConfigMap is named by its content: else no pod sees that prod.yaml changed."""
    names = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    if not names or not all(re.fullmatch(r"serve-config-[a-z0-9]{10}", name) for name in names):
        raise ManifestError(
            f"preload has ConfigMaps {sorted(names)}: need a hash at the end, which kustomize adds "
            "where disableNameSuffixHash is not set"
        )
    return ", ".join(names)
