"""Ray's layers are known to `short_way`: a version that has others makes every token dearer."""

import httpx
import pytest

from tests.fakes.serve_client import wait_until
from tests.serve_local.conftest import serve_config, write_config

pytestmark = [pytest.mark.serve, pytest.mark.timeout(120)]


def test_streams_go_past_serves_layers(serve, deploy, tmp_path):
    config = serve_config()
    probe = {"name": "probe", "route_prefix": "/probe"}
    config["applications"].append(probe | {"import_path": "tests.fakes.short_way_probe:app"})
    serve.deploy(write_config(tmp_path / "probe.yaml", config))

    def is_short() -> bool:
        return httpx.get(f"{serve.base_url}/probe", timeout=10).text == "data: short\n\n"

    # Before HAProxy knows the replica, Serve's own proxy asks it.
    wait_until(is_short, 30, "a stream that goes the short way")
