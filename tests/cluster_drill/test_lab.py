"""What happens in a lab stays there, and ends with it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster_drill import lab as labs
from tests.cluster_drill.idle_host import SECONDS

START = "import sys; from pathlib import Path; from tests.cluster_drill.lab import run; "
START += "run('tests.cluster_drill.idle_host', Path(sys.argv[1]), 60)"


def idlers() -> list[int]:
    """The host's process, as this machine sees it."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        if (each.info["cmdline"] or [])[:2] == ["sleep", SECONDS]:
            found.append(each.pid)
    return found


def until(condition, what) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        time.sleep(0.05)


def test_nothing_is_left_when_whoever_drills_is_killed(lab, tmp_path):
    links = set(os.listdir("/sys/class/net"))
    mounts = Path("/proc/self/mounts").read_text()
    drilling = subprocess.Popen([sys.executable, "-c", START, str(tmp_path)], cwd=labs.ROOT)
    try:
        until((tmp_path / "up").exists, "the host is up")
        until(idlers, "its process is there")
        assert set(os.listdir("/sys/class/net")) == links
        assert Path("/proc/self/mounts").read_text() == mounts
    finally:
        drilling.kill()
        drilling.wait()
    until(lambda: not idlers(), "its process is gone")


def test_a_drill_that_fails_says_why(lab, tmp_path):
    with pytest.raises(AssertionError, match="No module named"):
        labs.run("tests.cluster_drill.nothing", tmp_path, timeout_s=20)


def test_a_drill_that_takes_too_long_is_ended(lab, tmp_path):
    with pytest.raises(AssertionError, match="more than 3 s"):
        labs.run("tests.cluster_drill.idle_host", tmp_path, timeout_s=3)
    until(lambda: not idlers(), "its process is gone")
