"""One machine with two logical GPUs: the planned fractions land as planned."""

from collections import Counter

import httpx
import pytest

from tests.fakes.serve_client import CHAT, chat
from tests.serve_cluster.conftest import (
    MODEL,
    ServeOnCluster,
    cluster,
    connected,
    serve_config,
    until,
    variant,
)
from tests.serve_cluster.places import load_per_gpu, places

pytestmark = [pytest.mark.serve, pytest.mark.timeout(180)]

FRACTIONS = {"fp8": 0.5, "awq": 0.4, "int8": 0.4501}
"""Any two fit on a GPU and no three do, so that they fit in whatever order Serve starts them."""


def planned(**replicas: int) -> dict:
    counts = {"fp8": 1, "awq": 2, "int8": 1} | replicas
    return serve_config(
        *(variant(name, "L4", FRACTIONS[name], num_replicas=n) for name, n in counts.items())
    )


@pytest.fixture(scope="module")
def serve(folder):
    with cluster(("L4", 2)) as address, ServeOnCluster(planned(), folder, address) as running:
        running.address = address
        yield running


def test_fractions_land_as_planned_and_no_gpu_is_overfull(serve):
    until(lambda: serve.running("awq") == 2 and serve.running("int8") == 1, 60, "all run")
    with connected(serve.address) as ray:
        found = places(ray)
        labels = {place.gpu_type for place in found}
    assert Counter((place.variant, place.fraction) for place in found) == {
        ("fp8", 0.5): 1,
        ("awq", 0.4): 2,
        ("int8", 0.4501): 1,
    }
    assert labels == {"L4"}
    assert Counter(place.gpu_ids for place in found) == {("0",): 2, ("1",): 2}
    taken = load_per_gpu(found).values()
    assert max(taken) <= 1.0 and sum(taken) == pytest.approx(0.5 + 2 * 0.4 + 0.4501)
    with httpx.Client(base_url=serve.base_url, timeout=30) as client:
        for name in FRACTIONS:
            answer = client.post(CHAT, json=chat(f"{MODEL}@{name}"))
            assert (answer.status_code, answer.headers["x-variant"]) == (200, name)


def test_one_replica_too_many_waits_and_the_status_says_why(serve):
    serve.change(planned(awq=3))
    status = until(
        lambda: (found := serve.status("awq"))["message"].find("GPU") >= 0 and found,
        60,
        "the status names what is missing",
    )
    assert status["replica_states"] == {"RUNNING": 2, "STARTING": 1}
    assert "1 replicas that have taken more than" in status["message"]
    assert '"GPU": 0.4' in status["message"], "what it needs"
    with connected(serve.address) as ray:
        assert max(load_per_gpu(places(ray)).values()) <= 1.0
    answer = httpx.post(serve.base_url + CHAT, json=chat(f"{MODEL}@awq"), timeout=30)
    assert answer.status_code == 200, "those that have a place serve on"
    serve.change(planned())
    until(lambda: serve.status("awq")["replica_states"] == {"RUNNING": 2}, 60, "it is gone")
