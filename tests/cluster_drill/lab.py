"""A drill in namespaces of its own: processes, network, mounts. Whatever happens, all of it ends
with its first process, and nothing outside has noticed it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FACTS = "facts.json"
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--mount")
_PROBE = "mount -t tmpfs tmpfs /run && ip link add probe type bridge && ip netns add probe"
_PROGRAMS = ("unshare", "setpriv", "ip", "mount", "openssl")


def lack_of_namespaces() -> str | None:
    """Why no drill can run on this machine: need, have, what to do. None: it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return (
            f"need root on Linux for namespaces, have user {os.geteuid()} on {sys.platform}: run "
            "`make cluster-drill` as root, in a virtual machine or a privileged container"
        )
    if lacking := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return (
            f"need {', '.join(_PROGRAMS)} on PATH, lack {', '.join(lacking)}: "
            "apt-get install util-linux iproute2 mount openssl"
        )
    probe = subprocess.run(
        [*_UNSHARE, "--", "/bin/sh", "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return (
            f"need namespaces, mounts and a bridge, have `{probe.stderr.strip()[-200:]}`: run in a "
            "virtual machine, or a container with --privileged"
        )
    return None


def run(module: str, folder: Path, timeout_s: float) -> dict[str, Any]:
    """Run `python -m MODULE FOLDER` inside, as the first process, and return the facts it wrote.

    Raises AssertionError with the end of its output where it fails or takes too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "drill.log"
    # Should this process be killed, so is that one; and with it its child, and all others.
    tied = ("setpriv", "--pdeathsig", "KILL", *_UNSHARE, "--")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*tied, sys.executable, "-m", module, str(folder)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
    if status != 0:
        ending = f"took more than {timeout_s:.0f} s" if status is None else f"ended with {status}"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise AssertionError(f"{module} {ending}; hosts' files are in {folder}:\n{tail}")
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return facts


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """What the drill saw, for `run` to return."""
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
