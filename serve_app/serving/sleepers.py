"""Which variants are asleep on purpose: told by Serve's public status, asked by the router.

A variant that autoscaling took to zero replicas is not down. Its requests go to it and wake it
(Serve's proxy holds them until a replica is up). A probe would wake it too, so the router asks here
first. The question costs 4 ms of the router's time per application; only routers whose
`user_config` names `sleepers` ask it, every few seconds (`serve_app/decisions/0008`).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

logger = logging.getLogger("ray.serve")

ANSWER_WITHIN_S = 2.0
_SETTLED = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})


class Sleepers(Protocol):
    """Who is asleep."""

    async def names(self) -> frozenset[str] | None:
        """Names of the applications that sleep or wake; None while it cannot be known."""


class ServeSleepers:
    """Asks Serve's controller, one question at a time and never in the serving loop."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]] | None = None) -> None:
        self._ask = ask or _applications
        self._answer: asyncio.Task[Mapping[str, Any]] | None = None

    async def names(self) -> frozenset[str] | None:
        """As `Sleepers.names`: None when the controller is not there or slow."""
        if self._answer is None:
            self._answer = asyncio.create_task(asyncio.to_thread(self._ask))
        await asyncio.wait({self._answer}, timeout=ANSWER_WITHIN_S)
        if not self._answer.done():
            return None
        answer, self._answer = self._answer, None
        try:
            applications = answer.result()
        except Exception as error:  # the controller restarts; what was known stands
            logger.warning("Serve's status is not known: %r", error)
            return None
        return frozenset(name for name, status in applications.items() if is_asleep(status))


def is_asleep(application: Any) -> bool:
    """Whether an application (`ray.serve.schema.ApplicationStatusOverview`) has no replica that
    serves, and is meant to: it sleeps, or wakes. One that crashed, or is deployed, is neither.
    """
    deployments = application.deployments.values()
    return bool(deployments) and all(
        deployment.status in _SETTLED and not deployment.replica_states.get("RUNNING")
        for deployment in deployments
    )


def _applications() -> Mapping[str, Any]:
    from ray import serve

    applications: Mapping[str, Any] = serve.status().applications
    return applications
