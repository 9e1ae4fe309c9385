"""Ray's layers are known to `short_way`: a version that has others makes every token dearer."""

import time

import httpx
import pytest

from tests.serve_local.conftest import serve_config, write_config

pytestmark = [pytest.mark.serve, pytest.mark.timeout(120)]


def test_streams_go_past_serves_layers(serve, deploy, tmp_path):
    config = serve_config()
    probe = {"name": "probe", "route_prefix": "/probe"}
    config["applications"].append(probe | {"import_path": "tests.fakes.short_way_probe:app"})
    serve.deploy(write_config(tmp_path / "probe.yaml", config))
    until_s = time.monotonic() + 30  # before HAProxy knows the replica, Serve's own proxy asks it
    while (text := httpx.get(f"{serve.base_url}/probe", timeout=10).text) != "data: short\n\n":
        assert time.monotonic() < until_s, text
        time.sleep(0.2)
