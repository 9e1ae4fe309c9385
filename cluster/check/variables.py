"""Variables of cluster/README.md: each is set by a command before another one uses it."""

import re

from cluster.check.fault import ManifestError

GIVEN = {"PATH", "PWD", "HOME", "USER"}
"""A login shell has them."""
_QUOTED = re.compile(r"'[^']*'")
_USED = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
_SET = re.compile(r"\s([A-Z_]+)=")


def check_variables(blocks: list[str]) -> str:
    """Raises ManifestError for a variable that no earlier line sets.

    One line's own settings do not count for it: bash expands all of them first.
    """
    known: set[str] = set()
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for name in _USED.findall(_QUOTED.sub("", line)):
                if name not in known | GIVEN:
                    raise ManifestError(f"README: {line.strip()!r} uses ${name}, never set before")
            if line.startswith("export "):
                known |= set(_SET.findall(line))
    return f"{len(known)} variables"
