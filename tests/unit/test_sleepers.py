"""What Serve's status says of who sleeps."""

from types import SimpleNamespace

import pytest

from serve_app.serving.sleepers import ServeSleepers, is_asleep
from tests.fakes.relay import FakeApplications, application


@pytest.mark.parametrize(
    ("status", "replicas", "expected"),
    [
        ("HEALTHY", {}, True),
        ("DOWNSCALING", {"STOPPING": 1}, True),
        ("UPSCALING", {"STARTING": 1}, True),
        ("UPSCALING", {"STARTING": 1, "RUNNING": 1}, False),
        ("HEALTHY", {"RUNNING": 1}, False),
        ("UNHEALTHY", {"STARTING": 1}, False),
        ("UPDATING", {"STARTING": 1}, False),
        ("DEPLOY_FAILED", {}, False),
    ],
)
def test_only_what_is_meant_to_have_no_replica_sleeps(status, replicas, expected):
    assert is_asleep(application(status, **replicas)) is expected


def test_an_application_that_is_still_built_does_not_sleep():
    assert not is_asleep(SimpleNamespace(deployments={}))


async def test_names_of_those_that_sleep():
    known = FakeApplications(z=application("HEALTHY"), a=application("HEALTHY", RUNNING=1))
    assert await ServeSleepers(known).names() == {"z"}


async def test_where_serves_status_is_not_known_neither_are_the_sleepers():
    assert await ServeSleepers(FakeApplications.unknown()).names() is None
