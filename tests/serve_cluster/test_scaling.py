"""Two variants on one GPU: shared by pressure; one sleeps when idle and wakes when asked."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import httpx
import psutil
import pytest

from tests.fakes.serve_client import CHAT, chat
from tests.serve_cluster.conftest import (
    MODEL,
    ServeOnCluster,
    cluster,
    connected,
    scaled,
    serve_config,
    until,
    variant,
)
from tests.serve_cluster.places import load_per_gpu, places

pytestmark = [pytest.mark.serve, pytest.mark.timeout(180)]

BUDGET = {"L4": 1}
WAKE_BOUND_S = 25.0
"""Down with the other's replica (its requests end within 2 s), up with ours: on a busy machine."""


@pytest.fixture(scope="module")
def serve(folder):
    config = serve_config(
        variant("busy", "L4", 0.5, **scaled("L4", 0.5, BUDGET, minimum=1, maximum=2)),
        variant("rare", "L4", 0.5, **scaled("L4", 0.5, BUDGET, minimum=0, maximum=2)),
        sleepers=("rare",),
    )
    with cluster(("L4", 1)) as address, ServeOnCluster(config, folder, address) as running:
        running.address = address
        yield running


def models(serve) -> dict[str, dict]:
    data = httpx.get(f"{serve.base_url}/v1/models", timeout=10).json()["data"]
    return {each.get("variant", "*"): each for each in data}


@contextmanager
def load(serve, variant_name: str, n_clients: int) -> Iterator[list[int]]:
    """So many clients that each ask again and again; gives the statuses of their answers."""
    stop, statuses = Event(), []

    async def client() -> None:
        async with httpx.AsyncClient(base_url=serve.base_url, timeout=30) as session:
            while not stop.is_set():
                body = chat(f"{MODEL}@{variant_name}", max_tokens=32)
                statuses.append((await session.post(CHAT, json=body)).status_code)

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(n_clients)))

    thread = Thread(target=lambda: asyncio.run(clients()))
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def controller() -> psutil.Process | None:
    """Serve's controller, among the processes of this cluster's nodes."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may end while it is looked at
            if "ServeController" in " ".join(process.cmdline()):
                return process
    return None


def test_the_router_lets_an_idle_variant_sleep(serve):
    until(lambda: models(serve)["rare"]["asleep"], 60, "it is listed as asleep")
    asleep_until = time.monotonic() + 8
    while time.monotonic() < asleep_until:
        assert serve.running("rare") == 0, "nothing but a request may wake it"
        time.sleep(1)
    assert models(serve)["rare"]["ready"] is False
    assert httpx.get(f"{serve.base_url}/readyz", timeout=10).status_code == 200


def test_a_request_wakes_it_and_takes_the_place_of_a_neighbours_second_replica(serve):
    until(lambda: models(serve)["rare"]["asleep"], 60, "it sleeps")
    with load(serve, "busy", 8) as statuses:
        until(lambda: serve.running("busy") == 2, 60, "the busy one has the whole GPU")
        start = time.monotonic()
        answer = httpx.post(serve.base_url + CHAT, json=chat(f"{MODEL}@rare"), timeout=WAKE_BOUND_S)
        woke_after_s = time.monotonic() - start
        assert (answer.status_code, answer.headers["x-variant"]) == (200, "rare")
        assert models(serve)["rare"]["asleep"] is False
        assert answer.headers["x-route-reason"] == "pinned"
        with connected(serve.address) as ray:
            found = places(ray)
        assert sorted(place.variant for place in found) == ["busy", "rare"]
        assert max(load_per_gpu(found).values()) <= 1.0
    assert set(statuses) == {200}, "the neighbour that made room lost no request"
    print(f"woke and answered after {woke_after_s:.1f} s")


def test_after_the_controllers_death_who_sleeps_sleeps_on(serve):
    until(lambda: models(serve)["rare"]["asleep"], 60, "it sleeps")
    until(lambda: serve.running("busy") == 1, 60, "the busy one has calmed down")
    before = controller()
    before.kill()
    until(lambda: (now := controller()) and now.pid != before.pid, 60, "a new controller")
    asleep_until = time.monotonic() + 8
    while time.monotonic() < asleep_until:
        assert serve.running("rare") == 0
        assert models(serve)["rare"]["asleep"]
        assert httpx.post(serve.base_url + CHAT, json=chat(MODEL), timeout=10).status_code == 200
        time.sleep(1)
    answer = httpx.post(serve.base_url + CHAT, json=chat(f"{MODEL}@rare"), timeout=WAKE_BOUND_S)
    assert answer.headers["x-variant"] == "rare"
