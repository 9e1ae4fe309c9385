"""What an engine says of its load, which autoscaling goes by: real vLLM."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from serve_app.reference.build import CHECKPOINT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def said():
    program = [sys.executable, "-m", "tests.engine_cpu.load_probe", str(CHECKPOINT)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["statuses"] == [200] * 6
    return found


def test_at_rest_it_holds_nothing(said):
    at_rest = {"running": 0, "waiting": 0, "kv_use": 0.0}
    assert said["loads"][0] == at_rest
    assert said["after"] == at_rest


def test_full_it_runs_what_it_holds_and_the_rest_waits(said):
    full = [load for load in said["loads"] if load["waiting"] == 4]
    assert full, said["loads"]
    ((most, _),) = Counter(load["running"] for load in full).most_common(1)
    assert most == 2, "one may have ended in the very step that is shown"
    assert max(load["running"] for load in said["loads"]) == 2
    assert 0 < max(load["kv_use"] for load in said["loads"]) <= 1
