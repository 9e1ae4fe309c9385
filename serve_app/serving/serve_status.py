"""What Serve's public status says of the applications, asked of its controller.

A question costs 4 ms of CPU time per application, so it is asked on demand, in a thread, and one
at a time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger("ray.serve")

ANSWER_WITHIN_S = 2.0
_RUNNING, _HEALTHY = "RUNNING", "HEALTHY"
_ON_THE_WAY_OUT = frozenset({"STOPPING", "STOPPED"})


class Applications(Protocol):
    """What Serve says of its applications."""

    async def known(self, max_age_s: float = 0.0) -> Mapping[str, Any] | None:
        """Name -> `ray.serve.schema.ApplicationStatusOverview`, no older than asked for.

        None while it cannot be known: the controller is not there, or slow.
        """


class ServeStatus:
    """Asks Serve's controller, one question at a time and never in the serving loop."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]] | None = None) -> None:
        self._ask = ask or _applications
        self._question: asyncio.Task[Mapping[str, Any]] | None = None
        self._answer: Mapping[str, Any] | None = None
        self._answered_s = 0.0

    async def known(self, max_age_s: float = 0.0) -> Mapping[str, Any] | None:
        """As `Applications.known`; who asks while a question is open waits for its answer."""
        if self._answer is not None and time.monotonic() - self._answered_s < max_age_s:
            return self._answer
        if self._question is None:
            self._question = asyncio.create_task(asyncio.to_thread(self._ask))
        question = self._question
        await asyncio.wait({question}, timeout=ANSWER_WITHIN_S)
        if not question.done():
            return None
        if self._question is question:
            self._question = None
        try:
            self._answer = question.result()
        except Exception as error:  # the controller restarts; what was known stands
            logger.warning("Serve's status is not known: %r", error)
            return None
        self._answered_s = time.monotonic()
        return self._answer


@dataclass(frozen=True)
class Replicas:
    """How many replicas of a variant serve, and how many are meant to."""

    running: int
    target: int | None
    """None: Serve is changing or repairing the deployment, and does not say towards what."""


def replicas_of(application: Any) -> Replicas | None:
    """Replicas by an application's status; None while it has no deployment.

    The status holds no target: a healthy deployment has what it should have; one that is not has
    at least what runs or starts.
    """
    deployments = list(application.deployments.values())
    if not deployments:
        return None
    running = sum(each.replica_states.get(_RUNNING, 0) for each in deployments)
    meant = sum(
        n
        for each in deployments
        for state, n in each.replica_states.items()
        if state not in _ON_THE_WAY_OUT
    )
    settled = all(each.status == _HEALTHY for each in deployments)
    return Replicas(running, meant if settled or meant > running else None)


def dashboard_url() -> str | None:
    """Where Ray's dashboard answers, and with it Serve's REST API; None outside of Ray.

    It asks Ray's head: call it off the loop that serves requests. A worker's own idea of the
    address (`get_dashboard_url`) is the default one, whatever the head's is.
    """
    try:
        from ray._private.services import get_webui_url_from_internal_kv

        address = get_webui_url_from_internal_kv()
    except Exception as error:
        logger.warning("where Ray's dashboard is, is not known: %r", error)
        return None
    return f"http://{address}" if address else None


def _applications() -> Mapping[str, Any]:
    from ray import serve

    applications: Mapping[str, Any] = serve.status().applications
    return applications
