"""The two ways to the split, against servers that answer as Serve's and Kubernetes' do."""

import copy
from pathlib import Path

import pytest

from serve_app.config.parse import parse
from serve_app.config.rollout import RayServiceTarget
from serve_app.domain.errors import ConfigError
from serve_app.rollouts.rayservice import CONFLICTS, RayServiceApi
from serve_app.splits.http import TRIES
from serve_app.splits.live_split import SplitChangedError, SplitUnreachableError
from serve_app.splits.serve_api import ServeApi
from tests.fakes.serve_rest_api import TOKEN, FakeControlPlane, serve_config

BEFORE, AFTER = {"int8": 9000, "gptq": 1000}, {"int8": 5000, "gptq": 5000}


async def no_wait(seconds: float) -> None:
    return None


@pytest.fixture
async def plane():
    async with FakeControlPlane(BEFORE) as plane:
        yield plane


@pytest.fixture(params=["serve", "rayservice"])
async def store(request, plane):
    """Each way in turn: both have the same contract."""
    if request.param == "serve":
        store = ServeApi(plane.url, "router", "m", TOKEN, sleep=no_wait)
    else:
        store = RayServiceApi(target_of(plane), "m", sleep=no_wait)
    yield store
    await store.close()


def target_of(plane: FakeControlPlane, **changes) -> RayServiceTarget:
    values = {"kind": "rayservice", "name": "q", "namespace": "prod", "api_url": plane.url}
    return parse(RayServiceTarget, values | changes, where="test")


async def test_the_split_is_read_and_changed_and_nothing_else_is(store, plane):
    wanted = serve_config(AFTER)
    assert await store.read() == BEFORE
    await store.change(BEFORE, AFTER)
    assert plane.config == wanted
    assert await store.read() == AFTER


async def test_a_split_that_is_not_as_expected_is_left_alone(store, plane):
    with pytest.raises(SplitChangedError, match="somebody else"):
        await store.change({"int8": 10_000, "gptq": 0}, AFTER)
    assert plane.split == BEFORE
    assert not plane.puts and not plane.patches


async def test_what_others_changed_elsewhere_meanwhile_is_kept(store, plane):
    plane.config["applications"][1]["args"]["checkpoint"] = "/newer"
    await store.change(BEFORE, AFTER)
    assert plane.config["applications"][1]["args"]["checkpoint"] == "/newer"


async def test_a_server_that_stumbles_is_asked_again(store, plane):
    plane.failures = [503, 500]
    assert await store.read() == BEFORE


async def test_a_server_that_stays_down_is_an_error_of_its_own(store, plane):
    plane.failures = [503] * TRIES
    with pytest.raises(SplitUnreachableError, match="The split stays") as raised:
        await store.read()
    assert raised.value.exit_code == 4


async def test_nobody_listening_is_an_error_of_its_own():
    store = ServeApi("http://127.0.0.1:9", "router", "m", sleep=no_wait)
    with pytest.raises(SplitUnreachableError):
        await store.read()
    await store.close()


async def test_serves_options_are_put_back_as_they_were(plane):
    store = ServeApi(plane.url, "router", "m", sleep=no_wait)
    await store.change(BEFORE, AFTER)
    await store.close()
    (body,) = plane.puts
    assert body["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert body["proxy_location"] == "HeadOnly"
    assert set(body) == {"http_options", "proxy_location", "applications"}


async def test_rays_token_is_sent_and_its_lack_is_explained(plane):
    plane.token = TOKEN
    for token, is_let_in in ((TOKEN, True), (None, False)):
        store = ServeApi(plane.url, "router", "m", token, sleep=no_wait)
        if is_let_in:
            assert await store.read() == BEFORE
        else:
            with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN"):
                await store.read()
        await store.close()


async def test_hidden_secrets_are_never_written_back(plane):
    plane.redacts = True
    store = ServeApi(plane.url, "router", "m", sleep=no_wait)
    with pytest.raises(ConfigError, match="hides environment variables"):
        await store.change(BEFORE, AFTER)
    await store.close()
    assert not plane.puts


async def test_an_application_without_a_config_would_be_lost_and_stops_us(plane):
    plane.imperative = {"int8"}
    store = ServeApi(plane.url, "router", "m", sleep=no_wait)
    with pytest.raises(ConfigError, match="'int8' was not deployed from a config"):
        await store.change(BEFORE, AFTER)
    await store.close()
    assert not plane.puts


async def test_a_put_that_serve_refuses_says_why(plane):
    store = ServeApi(plane.url, "router", "m", sleep=no_wait)

    def refuse(event: str) -> None:
        if event == "put":
            plane.failures = [400]

    plane.on_event = refuse
    with pytest.raises(ConfigError, match=r"refused the split \(400\): as the test wished"):
        await store.change(BEFORE, AFTER)
    await store.close()


async def test_another_writer_right_after_us_is_noticed(plane):
    store = ServeApi(plane.url, "router", "m", sleep=no_wait)

    def overwrite(event: str) -> None:
        if event == "after put":
            plane.config = serve_config({"int8": 1, "gptq": 9999})

    plane.on_event = overwrite
    with pytest.raises(SplitChangedError, match="changes the split as well"):
        await store.change(BEFORE, AFTER)
    await store.close()


async def test_a_resource_that_changed_between_reading_and_writing_is_not_written(plane):
    store = RayServiceApi(target_of(plane), "m", sleep=no_wait)
    before = copy.deepcopy(plane.config)

    def touch(event: str) -> None:
        if event == "patch":
            plane.version += 1

    plane.on_event = touch
    with pytest.raises(SplitChangedError, match="nothing was written"):
        await store.change(BEFORE, AFTER)
    await store.close()
    assert plane.config == before
    assert plane.events.count("patch") == CONFLICTS


async def test_kuberays_own_writes_of_the_status_do_not_end_a_rollout(plane):
    store = RayServiceApi(target_of(plane), "m", sleep=no_wait)

    def write_status(event: str) -> None:
        if event == "patch" and plane.events.count("patch") < CONFLICTS:
            plane.version += 1

    plane.on_event = write_status
    await store.change(BEFORE, AFTER)
    await store.close()
    assert plane.split == AFTER
    assert len(plane.patches) == 1


async def test_a_split_that_was_changed_meanwhile_is_seen_when_it_is_read_again(plane):
    store = RayServiceApi(target_of(plane), "m", sleep=no_wait)

    def meddle(event: str) -> None:
        if event == "patch":
            plane.version += 1
            plane.config = serve_config({"int8": 1, "gptq": 9999})

    plane.on_event = meddle
    with pytest.raises(SplitChangedError, match="somebody else"):
        await store.change(BEFORE, AFTER)
    await store.close()
    assert plane.split == {"int8": 1, "gptq": 9999}


async def test_a_patch_whose_answer_was_lost_is_no_conflict_with_itself(plane):
    store = RayServiceApi(target_of(plane), "m", sleep=no_wait)

    def lose(event: str) -> None:
        if event == "after patch" and not plane.failures and len(plane.patches) == 1:
            plane.loses_answer = True

    plane.on_event = lose
    await store.change(BEFORE, AFTER)
    await store.close()
    assert plane.split == AFTER
    assert plane.events.count("patch") == 2
    assert len(plane.patches) == 1


async def test_a_resources_comments_survive(plane):
    store = RayServiceApi(target_of(plane), "m", sleep=no_wait)
    await store.change(BEFORE, AFTER)
    await store.close()
    assert plane.patches[0]["spec"]["serveConfigV2"].startswith("# kept\n")


@pytest.mark.parametrize(
    ("status", "message"), [(403, "`get` and `patch`"), (404, "no such resource"), (401, "token")]
)
async def test_what_kubernetes_refuses_is_explained(plane, status, message):
    store = RayServiceApi(target_of(plane), "m", sleep=no_wait)
    plane.failures = [status]
    with pytest.raises(ConfigError, match=message):
        await store.read()
    await store.close()


async def test_outside_a_cluster_an_api_url_is_asked_for(plane, tmp_path: Path):
    with pytest.raises(ConfigError, match="kubectl proxy"):
        RayServiceApi(target_of(plane, api_url=None), "m", account=tmp_path)
