"""What the texts and comments of cluster/ refer to exists: make targets, steps and sections of the
README, decision records, modules of the check."""

import re
from collections.abc import Iterator
from pathlib import Path

from cluster.check.fault import ManifestError
from cluster.check.render import CLUSTER, ROOT

_MAKE = re.compile(r"`make ([a-z-]+)")
_STEP = re.compile(r"cluster/README\.md, step (\d+)")
_SECTION = re.compile(r'cluster/README\.md, "([^"]+)"')
_DECISIONS = re.compile(r"\bdecisions? (\d{4}(?:(?:, | and )\d{4})*)")
_LINK = re.compile(r"decisions/(\d{4}-[\w-]+\.md)")
_SCRIPT = re.compile(r"\bscripts/([\w-]+\.sh)")
_TEXTS = {".yaml", ".md", ".sh", ".py", ""}


def check_mentions() -> str:
    """`missing` of every text of cluster/. Raises ManifestError."""
    files = sorted(
        each
        for each in CLUSTER.rglob("*")
        if each.is_file() and each.suffix in _TEXTS and "__pycache__" not in each.parts
    )
    faults = [
        f"{file.relative_to(ROOT)}: {fault}"
        for file in files
        for fault in missing(file.read_text())
    ]
    if faults:
        raise ManifestError("; ".join(faults))
    return f"{len(files)} files"


def missing(text: str) -> Iterator[str]:
    """What a text refers to and is not there."""
    readme = (CLUSTER / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    decisions = {file.name for file in (ROOT / "serve_app" / "decisions").glob("*.md")}
    numbers = {name[:4] for name in decisions}
    for target in _MAKE.findall(text):
        if target not in targets:
            yield f"the Makefile has no target {target}"
    for step in _STEP.findall(text):
        if not re.search(rf"^{step}\. ", readme, re.M):
            yield f"cluster/README.md has no step {step}"
    for title in _SECTION.findall(text):
        if not re.search(rf"^#+ {re.escape(title)}$", readme, re.M):
            yield f"cluster/README.md has no section {title!r}"
    for found in _DECISIONS.findall(text):
        for number in re.findall(r"\d{4}", found):
            if number not in numbers:
                yield f"there is no decision {number}"
    for name in _LINK.findall(text):
        if name not in decisions:
            yield f"there is no decisions/{name}"
    for script in _SCRIPT.findall(text):
        if not (Path(CLUSTER) / "scripts" / script).is_file():
            yield f"there is no cluster/scripts/{script}"
