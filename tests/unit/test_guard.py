"""The guard in conftest.py is worth nothing if it lets the wrong test pass."""

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest


def test_a_socket_says_where_the_test_belongs():
    with pytest.raises(pytest.fail.Exception, match="tests/contract"):
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
    with socket.socket() as probe, pytest.raises(pytest.fail.Exception, match="tests/contract"):
        probe.bind(("127.0.0.1", 0))


async def test_a_server_is_refused_and_the_loop_goes_on():
    with pytest.raises(pytest.fail.Exception, match="tests/contract"):
        await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    await asyncio.to_thread(os.getpid)  # wakes the loop through its socketpair


def test_ray_init_says_where_the_test_belongs(tmp_path):
    """In a process of its own: importing the real Ray takes seconds, a stand-in does not."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("def init(): print('a cluster starts')")
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "def test_first_import():\n    import ray\n    ray.init()\n"
        "def test_imported_before():\n    import ray\n    ray.init()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert "2 failed" in done.stdout
    assert "tests/serve_local" in done.stdout
    assert "a cluster starts" not in done.stdout
