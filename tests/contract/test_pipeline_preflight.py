"""Ports that a pipeline will need are asked for before anything expensive starts."""

import socket
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.domain.errors import ConfigError
from serve_app.pipeline.pipeline_file import read_pipeline, steps_of
from serve_app.pipeline.preflight import check_ready
from serve_app.serving.ports import fixed_ports, free_port, own_ports, require_free
from tests.fakes.pipelines import pipeline, write_pipeline


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def ready(folder: Path, port: int, last: int | None = None):
    file = read_pipeline(write_pipeline(folder / "p.yaml", pipeline(port=port)))
    # what is made is checked by the quantizers' own preflight
    check_ready(file, steps_of(file)[1:2] if last is None else [], folder, Console(quiet=True))


def test_a_taken_port_is_refused_with_a_way_out(taken, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    with pytest.raises(ConfigError, match=rf"port {taken} .*set another `port`"):
        ready(tmp_path, taken)
    ready(tmp_path, free_port())
    ready(tmp_path, taken, last=0)  # nothing is left to serve


def test_another_haproxy_is_noticed(taken, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    for name, value in own_ports().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(taken))
    with pytest.raises(ConfigError, match="RAY_SERVE_HAPROXY_STATS_PORT"):
        ready(tmp_path, free_port())
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(free_port()))
    ready(tmp_path, free_port())


def test_the_ports_are_those_of_the_environment():
    assert fixed_ports({}) == {}
    on = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_STATS_PORT": "9"}
    assert fixed_ports(on) == {
        "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
        "RAY_SERVE_HAPROXY_STATS_PORT": 9,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
    }
    own = {**on, **own_ports()}
    assert not set(fixed_ports(own).values()) & set(fixed_ports(on).values())


def test_a_port_that_is_free_is_left_free():
    port = free_port()
    require_free(port, "")
    require_free(port, "")
