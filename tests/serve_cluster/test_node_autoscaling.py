"""Ray's autoscaler starts a GPU node when the plan needs one, and ends it when it is idle."""

from collections import Counter

import httpx
import pytest

from tests.fakes.serve_client import CHAT, chat
from tests.serve_cluster.conftest import (
    LABEL,
    MODEL,
    ServeOnCluster,
    connected,
    environment,
    serve_config,
    until,
    variant,
)
from tests.serve_cluster.fake_nodes import fake_nodes
from tests.serve_cluster.places import load_per_gpu, places

pytestmark = [pytest.mark.serve, pytest.mark.timeout(240)]


def node_type(gpu: str, count: int) -> dict:
    return {
        "resources": {"CPU": 1, "GPU": count},
        "labels": {LABEL: gpu},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    }


def planned(**replicas: int) -> dict:
    counts = {"awq": 1} | replicas
    return serve_config(*(variant(name, "L4", 0.6, num_replicas=n) for name, n in counts.items()))


@pytest.fixture(scope="module")
def serve(folder):
    types = {"l4": node_type("L4", 1), "h100": node_type("H100", 1)}
    with (
        environment(),
        fake_nodes(types, folder, idle_s=5) as nodes,
        ServeOnCluster(planned(), folder, nodes.address) as running,
    ):
        running.address = nodes.address
        yield running


def gpu_nodes(ray) -> Counter:
    return Counter(
        node["Labels"].get(LABEL, "?")
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    )


def test_a_node_comes_for_a_replica_that_has_no_place_and_goes_with_it(serve):
    with connected(serve.address) as ray:
        until(lambda: serve.running("awq") == 1, 60, "the first replica runs")
        assert gpu_nodes(ray) == {"L4": 1}

        serve.change(planned(awq=2))
        until(lambda: serve.running("awq") == 2, 60, "the second replica runs")
        assert gpu_nodes(ray) == {"L4": 2}
        found = places(ray)
        assert len({place.node_id for place in found}) == 2
        assert max(load_per_gpu(found).values()) <= 1.0

        serve.change(planned(awq=1))
        until(lambda: gpu_nodes(ray) == {"L4": 1}, 60, "the idle node is gone")
        assert serve.running("awq") == 1
    answer = httpx.post(serve.base_url + CHAT, json=chat(MODEL), timeout=30)
    assert answer.status_code == 200
