"""What the Serve config says about time and place."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from cluster.check.render import ROOT
from serve_app.config.gpus import find_gpu, load_gpus
from serve_app.domain.errors import PlanError
from serve_app.fleet.plan import plan_fleet
from serve_app.fleet.read import read_fleet
from serve_app.fleet.summary import misfit
from serve_app.planning.fleet import Pool
from serve_app.scaling.load import Targets

FILE = ROOT / "configs" / "prod.yaml"
_POLICY = Targets(ongoing_per_replica=1)
"""For the delays of a variant that names none."""


@dataclass(frozen=True)
class Times:
    """In seconds; where deployments differ, the one that binds."""

    longest_answer_s: float
    drain_s: float
    graceful_shutdown_s: float
    look_back_s: float
    upscale_delay_s: float
    downscale_delay_s: float
    longest_graceful_shutdown_s: float


def content() -> dict[str, Any]:
    """configs/prod.yaml."""
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
    return loaded


def deployments(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All of the file."""
    return [each for app in config["applications"] for each in app["deployments"]]


def router(config: Mapping[str, Any]) -> dict[str, Any]:
    """The router's deployment."""
    [found] = [each for each in deployments(config) if each["name"] == "VariantRouter"]
    return found


def times(config: Mapping[str, Any]) -> Times:
    """Of a config in which every deployment names its own."""
    resilience = router(config)["user_config"]["resilience"]
    scaled = [each["autoscaling_config"] for each in deployments(config)]
    scaled = [each for each in scaled if "policy" in each]
    policies = [each["policy"].get("policy_kwargs", {}) for each in scaled]
    stops = [float(each["graceful_shutdown_timeout_s"]) for each in deployments(config)]
    return Times(
        longest_answer_s=resilience["request_timeout_ms"] / 1000,
        drain_s=float(resilience["drain_s"]),
        graceful_shutdown_s=min(stops),
        look_back_s=max(float(each["look_back_period_s"]) for each in scaled),
        upscale_delay_s=max(
            float(each.get("upscale_delay_s", _POLICY.upscale_delay_s)) for each in policies
        ),
        downscale_delay_s=max(
            float(each.get("downscale_delay_s", _POLICY.downscale_delay_s)) for each in policies
        ),
        longest_graceful_shutdown_s=max(stops),
    )


def budget(config: Mapping[str, Any]) -> dict[str, int]:
    """The GPUs, by type, that the variants' policies share; the most that any of them names."""
    most: dict[str, int] = {}
    for each in deployments(config):
        policy = each["autoscaling_config"].get("policy") or {}
        for name, count in (policy.get("policy_kwargs", {}).get("budget") or {}).items():
            most[name] = max(count, most.get(name, 0))
    return most


@cache
def fewest_gpus() -> dict[str, int]:
    """GPUs, by type, that the fewest replicas take, as `quantile plan` packs them."""
    file = read_fleet(FILE, as_written=True)
    fleet = plan_fleet(file.variants, load_gpus(), {}, as_written=True)
    if (problem := misfit(fleet)) is not None:
        raise PlanError(problem)
    return {use.pool.gpu: use.needed_gpus for use in fleet.packing.types if use.demands}


def fits(counts: Mapping[str, int], per_node: Mapping[str, int]) -> str | None:
    """What is wrong with so many GPUs of each type under the fewest replicas; None: they fit."""
    file = read_fleet(FILE, as_written=True)
    pools = {name: Pool(name, count, per_node[name]) for name, count in counts.items()}
    return misfit(plan_fleet(file.variants, load_gpus(), pools, as_written=True))


def accelerator_of(gpu_type: str) -> str:
    """The value of Ray's node label by which the variants of that type select."""
    return find_gpu(load_gpus(), gpu_type).accelerator_type
