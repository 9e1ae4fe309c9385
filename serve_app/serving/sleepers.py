"""Which variants are asleep on purpose: told by Serve's public status, asked by the router.

A variant that autoscaling took to zero replicas is not down. Its requests go to it and wake it
(Serve's proxy holds them until a replica is up). A probe would wake it too, so the router asks here
first. The question costs 4 ms of the router's time per application; only routers whose
`user_config` names `sleepers` ask it, every few seconds (`serve_app/decisions/0008`).
"""

from typing import Any, Protocol

from serve_app.serving.serve_status import Applications

_SETTLED = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})


class Sleepers(Protocol):
    """Who is asleep."""

    async def names(self) -> frozenset[str] | None:
        """Names of the applications that sleep or wake; None while it cannot be known."""


class ServeSleepers:
    """Those that sleep by what Serve says of its applications."""

    def __init__(self, applications: Applications) -> None:
        self._applications = applications

    async def names(self) -> frozenset[str] | None:
        """As `Sleepers.names`: None when the controller is not there or slow."""
        applications = await self._applications.known()
        if applications is None:
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
