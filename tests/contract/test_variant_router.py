"""The router's deployment class as Serve drives it; its ingress is a scripted server."""

import pytest

from serve_app.config.schema import RouterArgs
from serve_app.domain.errors import ConfigError
from serve_app.serving.variant_router import VariantRouter
from tests.fakes.raw_server import Peer, RawServer, answer

pytest.importorskip("ray", reason="the router counts through Ray Serve's metrics")

GOOD = {"split": {"a": 7000, "b": 3000}, "fallback": ["b"]}
WRONG = [
    {"split": {"a": 7000, "b": 2000}},
    {"split": {"a": 10_000}, "fallback": ["b"]},
    {"splits": {"a": 10_000}},
    {"split": {"a": "most"}},
    {},
    {"split": {"a": 10_000}, "aliases": {"m": {"split": {"a": 10_000}}}},
    {"split": {"a": 10_000}, "cohorts": [{"name": "gold", "split": {"z": 10_000}}]},
]


@pytest.fixture
async def replica(monkeypatch):
    monkeypatch.setenv("QUANTILE_INTERNAL_TOKEN", "0123456789abcdef")

    async def refuse(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answer(status=b"503 Service Unavailable"))

    async with RawServer(refuse) as ingress:
        url = f"http://127.0.0.1:{ingress.port}"
        replica = VariantRouter(RouterArgs(model="m", ingress_url=url, first_look_s=0))
        replica.app = await replica.__serve_build_asgi_app__()
        yield replica
        await replica.__del__()


def split_of(replica):
    return replica.app.aliases["m"].split


async def test_healthy_means_that_there_is_a_split(replica):
    with pytest.raises(ConfigError, match="no user_config"):
        await replica.check_health()
    await replica.reconfigure(GOOD)
    await replica.check_health()
    assert split_of(replica).shares_bp == GOOD["split"]
    assert split_of(replica).fallback == ("b",)


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_split_at_the_start_fails_the_replica(replica, wrong):
    with pytest.raises(ConfigError):
        await replica.reconfigure(wrong)
    with pytest.raises(ConfigError):
        await replica.check_health()


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_split_later_is_refused_and_the_last_good_one_stays(replica, wrong, caplog):
    await replica.reconfigure(GOOD)
    caplog.clear()
    with caplog.at_level("ERROR", logger="ray.serve"):
        await replica.reconfigure(wrong)
    assert split_of(replica).shares_bp == GOOD["split"]
    await replica.check_health()
    await replica.reconfigure({"split": {"a": 0, "b": 10_000}})
    assert split_of(replica).serving == ("b",)
