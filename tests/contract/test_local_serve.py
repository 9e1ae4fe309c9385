"""Ending `serve run`: nothing of its process group is left."""

import os
import subprocess
import time

import psutil
import pytest

from serve_app.serving.local_serve import end_group


def leader_that_left(command: str) -> tuple[int, psutil.Process]:
    """The group of a process that has ended, and the one that it left behind."""
    with subprocess.Popen(
        ["sh", "-c", f"{command} & echo $!"], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        left = psutil.Process(int(process.stdout.readline()))
        process.wait()
    return process.pid, left


def test_what_does_not_end_by_itself_is_killed():
    group, left = leader_that_left("nohup sleep 60 >/dev/null 2>&1")
    assert left.is_running() and os.getpgid(left.pid) == group
    end_group(group, 0.2)
    psutil.wait_procs([left], timeout=5)
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE


def test_what_ends_by_itself_is_waited_for(tmp_path):
    group, _ = leader_that_left(f"(sleep 0.5; touch {tmp_path}/done) >/dev/null 2>&1")
    began = time.monotonic()
    end_group(group, 30)
    assert (tmp_path / "done").exists() and time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
