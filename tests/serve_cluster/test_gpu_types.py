"""Nodes of different GPU types: a replica goes where its plan was made for."""

from collections import Counter

import pytest

from tests.serve_cluster.conftest import (
    ServeOnCluster,
    cluster,
    connected,
    serve_config,
    until,
    variant,
)
from tests.serve_cluster.places import load_per_gpu, places

pytestmark = [pytest.mark.serve, pytest.mark.timeout(180)]


def planned(**replicas: int) -> dict:
    fraction = {"awq": ("L4", 0.5), "fp8": ("H100", 0.25)}
    counts = {"awq": 3, "fp8": 4} | replicas
    return serve_config(
        *(variant(name, *fraction[name], num_replicas=n) for name, n in counts.items())
    )


@pytest.fixture(scope="module")
def serve(folder):
    with (
        cluster(("L4", 1), ("L4", 1), ("H100", 1)) as address,
        ServeOnCluster(planned(), folder, address) as running,
    ):
        running.address = address
        yield running


def test_every_replica_is_on_its_gpu_type(serve):
    until(lambda: serve.running("awq") == 3 and serve.running("fp8") == 4, 60, "all run")
    with connected(serve.address) as ray:
        found = places(ray)
    assert Counter((place.variant, place.gpu_type) for place in found) == {
        ("awq", "L4"): 3,
        ("fp8", "H100"): 4,
    }
    assert max(load_per_gpu(found).values()) <= 1.0


def test_room_on_another_type_is_no_room(serve):
    """Half an L4 is free, and no H100."""
    serve.change(planned(fp8=5))
    status = until(
        lambda: "GPU" in (found := serve.status("fp8"))["message"] and found, 60, "it says why"
    )
    assert status["replica_states"] == {"RUNNING": 4, "STARTING": 1}
    with connected(serve.address) as ray:
        assert {place.gpu_type for place in places(ray) if place.variant == "fp8"} == {"H100"}
        assert ray.available_resources()["GPU"] == pytest.approx(0.5)
