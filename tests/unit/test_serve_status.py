"""Serve's status: asked once at a time, remembered for as long as the caller allows."""

import asyncio
import threading

import pytest

from serve_app.serving import serve_status
from serve_app.serving.serve_status import Replicas, ServeStatus, replicas_of
from tests.fakes.relay import application

LONG_S = 1000.0


@pytest.mark.parametrize(
    ("status", "states", "expected"),
    [
        ("HEALTHY", {"RUNNING": 2}, Replicas(2, 2)),
        ("HEALTHY", {}, Replicas(0, 0)),  # asleep, as it should be
        ("HEALTHY", {"RUNNING": 1, "STOPPING": 2}, Replicas(1, 1)),
        ("UPSCALING", {"RUNNING": 1, "STARTING": 2}, Replicas(1, 3)),
        ("UPDATING", {"RUNNING": 1, "UPDATING": 1, "STOPPING": 1}, Replicas(1, 2)),
        ("UNHEALTHY", {"RUNNING": 1, "RECOVERING": 1}, Replicas(1, 2)),
        # one died and the next has not been started yet: nobody says that 1 is enough
        ("UNHEALTHY", {"RUNNING": 1}, Replicas(1, None)),
        ("DEPLOY_FAILED", {"STOPPED": 1}, Replicas(0, None)),
    ],
)
def test_replicas_that_run_and_that_are_meant_to(status, states, expected):
    assert replicas_of(application(status, **states)) == expected


def test_replicas_of_several_deployments_are_added_and_one_that_is_ill_counts_for_all():
    whole = application("HEALTHY", RUNNING=2)
    whole.deployments["other"] = application("HEALTHY", RUNNING=1).deployments["VariantServer"]
    assert replicas_of(whole) == Replicas(3, 3)
    whole.deployments["other"].status = "UNHEALTHY"
    assert replicas_of(whole) == Replicas(3, None)


def test_an_application_that_is_still_built_has_no_number_of_replicas():
    whole = application("HEALTHY")
    whole.deployments.clear()
    assert replicas_of(whole) is None


async def test_an_answer_is_used_again_while_it_is_young_enough():
    answers = iter([{"a": 1}, {"a": 2}])
    status = ServeStatus(lambda: next(answers))
    assert await status.known(LONG_S) == {"a": 1}
    assert await status.known(LONG_S) == {"a": 1}
    assert await status.known() == {"a": 2}
    assert await status.known(LONG_S) == {"a": 2}


async def test_an_error_means_that_nothing_is_known_and_is_asked_again(caplog):
    answers = iter([RuntimeError("no controller"), {"z": 1}])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    status = ServeStatus(ask)
    assert await status.known(LONG_S) is None
    assert "no controller" in caplog.text
    assert await status.known(LONG_S) == {"z": 1}


async def test_a_slow_controller_is_asked_once_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(serve_status, "ANSWER_WITHIN_S", 0.01)
    answered, n_asked = threading.Event(), []

    def ask():
        n_asked.append(1)
        answered.wait(5)
        return {"z": 1}

    slow = ServeStatus(ask)
    assert [await slow.known() for _ in range(3)] == [None] * 3
    answered.set()
    await asyncio.sleep(0.05)
    assert await slow.known() == {"z": 1}
    assert len(n_asked) == 1


async def test_who_asks_at_the_same_time_gets_the_same_answer():
    n_asked = []

    def ask():
        n_asked.append(1)
        return {"z": 1}

    status = ServeStatus(ask)
    assert await asyncio.gather(*(status.known() for _ in range(5))) == [{"z": 1}] * 5
    assert len(n_asked) == 1
