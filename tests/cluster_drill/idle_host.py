"""Inside a lab: one host that does nothing, for ever. The module of `test_lab.py`."""

import signal
import sys
from pathlib import Path

from tests.cluster_drill.hosts import Lan

SECONDS = "86399.5"
"""By which the host's process is known from outside."""

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    host = Lan(folder).start("idle", "10.77.0.9", ["sleep", SECONDS], environ)
    if host.is_alive:
        (folder / "up").touch()
    signal.pause()
