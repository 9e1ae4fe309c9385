"""Our code in vLLM's processes: loaded early, and a platform to nobody."""

from importlib.metadata import entry_points

import pytest

from serve_app.engines import vllm_plugin
from serve_app.node.registry import OWNER


@pytest.mark.parametrize("group", ["vllm.platform_plugins", "vllm.general_plugins"])
def test_vllm_finds_it_in_both_groups(group):
    """The first runs while a process imports vLLM, before it waits for anybody."""
    loaded = [point.load() for point in entry_points(group=group, name="quantile")]
    assert loaded in ([vllm_plugin.platform], [vllm_plugin.register])


def test_it_claims_no_platform_and_may_run_again(monkeypatch):
    monkeypatch.delenv(OWNER, raising=False)
    assert vllm_plugin.platform() is None
    vllm_plugin.register()
    assert vllm_plugin.platform() is None
