"""How many replicas of a variant a Serve config file asks for."""

from dataclasses import dataclass
from typing import Any

from serve_app.domain.errors import ConfigError


@dataclass(frozen=True)
class ReplicaBounds:
    """Fewest and most replicas that Serve keeps."""

    minimum: int = 1
    maximum: int = 1


def replica_bounds(application: dict[str, Any]) -> ReplicaBounds:
    """Bounds of the application's `VariantServer`. Raises ConfigError for bounds that are none.

    `num_replicas: auto` is Serve's shorthand for 1 to 100.
    """
    deployment = variant_deployment(application)
    where = f"application {application.get('name')!r}"
    if application.get("args", {}).get("gpu") and "num_gpus" in (
        deployment.get("ray_actor_options") or {}
    ):
        raise ConfigError(
            f"{where} sets args.gpu and ray_actor_options.num_gpus: remove num_gpus, "
            "args.gpu.fraction is the one place for it"
        )
    count = deployment.get("num_replicas", 1)
    scaling = deployment.get("autoscaling_config")
    if scaling is None and count != "auto":
        return _bounds(count, count, where)
    scaling = scaling or {}
    auto_maximum = 100 if count == "auto" else 1
    return _bounds(scaling.get("min_replicas", 1), scaling.get("max_replicas", auto_maximum), where)


def variant_deployment(application: dict[str, Any]) -> dict[str, Any]:
    """The settings of the application's `VariantServer`; empty where the file has none."""
    for deployment in application.get("deployments") or []:
        if isinstance(deployment, dict) and deployment.get("name") == "VariantServer":
            return deployment
    return {}


def _bounds(minimum: Any, maximum: Any, where: str) -> ReplicaBounds:
    if not (isinstance(minimum, int) and isinstance(maximum, int) and 0 <= minimum <= maximum):
        raise ConfigError(
            f"{where} has replicas from {minimum!r} to {maximum!r}: give whole numbers, "
            "min_replicas at most max_replicas"
        )
    return ReplicaBounds(minimum, maximum)
