"""What Serve's status says of who sleeps."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from serve_app.serving import sleepers
from serve_app.serving.sleepers import ServeSleepers, is_asleep


def application(status: str, **replicas: int) -> SimpleNamespace:
    deployment = SimpleNamespace(status=status, replica_states=replicas)
    return SimpleNamespace(deployments={"VariantServer": deployment})


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
    known = {"z": application("HEALTHY"), "a": application("HEALTHY", RUNNING=1)}
    assert await ServeSleepers(lambda: known).names() == {"z"}


async def test_an_error_means_that_nothing_is_known_and_is_asked_again(caplog):
    answers = iter([RuntimeError("no controller"), {"z": application("HEALTHY")}])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked = ServeSleepers(ask)
    assert await asked.names() is None
    assert "no controller" in caplog.text
    assert await asked.names() == {"z"}


async def test_a_slow_controller_is_asked_once_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(sleepers, "ANSWER_WITHIN_S", 0.01)
    answered, n_asked = threading.Event(), []

    def ask():
        n_asked.append(1)
        answered.wait(5)
        return {"z": application("HEALTHY")}

    slow = ServeSleepers(ask)
    assert [await slow.names() for _ in range(3)] == [None] * 3
    answered.set()
    await asyncio.sleep(0.05)
    assert await slow.names() == {"z"}
    assert len(n_asked) == 1
