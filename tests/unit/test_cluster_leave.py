"""cluster/image/leave-cluster, with a Ray that only writes down what it is asked.

`ray` is patched: the real one would start a cluster. Not tried here: the script in a pod.
"""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "image" / "leave-cluster"


@pytest.fixture
def script(monkeypatch):
    ray = types.SimpleNamespace(
        init=lambda *_, **__: None,
        shutdown=lambda: None,
        get_runtime_context=lambda: types.SimpleNamespace(get_node_id=lambda: "ab" * 28),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    loader = importlib.machinery.SourceFileLoader("leave_cluster", str(SCRIPT))
    spec = importlib.util.spec_from_loader("leave_cluster", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def asked(script, monkeypatch):
    commands = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, **_: commands.append(command))
    return commands


def test_the_node_is_drained_and_waited_for_as_long_as_replicas_are_there(
    script, asked, monkeypatch
):
    now, left = [0.0], [2, 2, 1, 0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(script.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(script, "replicas", lambda: left.pop(0))
    script.main(660)
    [drain] = asked
    assert drain[:2] == ["ray", "drain-node"]
    assert drain[drain.index("--node-id") + 1] == "ab" * 28
    assert drain[drain.index("--deadline-remaining-seconds") + 1] == "660"
    assert now[0] == 3


def test_it_does_not_wait_beyond_its_time(script, asked, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(script.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(script, "replicas", lambda: 1)
    script.main(10)
    assert now[0] == 10


def test_only_replicas_count(script, monkeypatch):
    lines = [["ray::ServeReplica:router:VariantRouter"], ["ray::IDLE"], [], None, ["python", "x"]]
    processes = [types.SimpleNamespace(info={"cmdline": line}) for line in lines]
    monkeypatch.setattr(script.psutil, "process_iter", lambda _: iter(processes))
    assert script.replicas() == 1


def test_ray_is_stopped_even_where_it_cannot_be_asked():
    """The last lines: whatever happens, `ray stop`."""
    last = SCRIPT.read_text().rpartition('if __name__ == "__main__":')[2]
    assert last.index("finally:") < last.index('"ray", "stop"')
