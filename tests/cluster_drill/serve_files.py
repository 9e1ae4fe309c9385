"""Serve files for the drills: `configs/prod.yaml`, with what needs a GPU or S3 taken out."""

import copy
from collections.abc import Mapping
from typing import Any

Content = dict[str, Any]
ROUTER = "router"


def with_fake_engines(content: Content, script: Mapping[str, Any]) -> Content:
    """The file with a fake engine in every variant. Shares, GPU types, sizes stay as they are."""
    result = copy.deepcopy(content)
    for application in variants(result):
        args = application["args"]
        args["checkpoint"] = "none"
        args["engine"] |= {"kind": "fake", "fake": dict(script)}
    return result


def hurried(content: Content, *, look_back_s: float, downscale_delay_s: float) -> Content:
    """The file with the waits of its autoscaling cut short; who scales by what stays as it is."""
    result = copy.deepcopy(content)
    for application in variants(result):
        [deployment] = application["deployments"]
        scaling = deployment["autoscaling_config"]
        scaling["look_back_period_s"] = look_back_s
        policy = scaling["policy"]["policy_kwargs"]
        scaling["policy"]["policy_kwargs"] = {**policy, "downscale_delay_s": downscale_delay_s}
    return result


def with_two_variants(content: Content, names: tuple[str, str]) -> Content:
    """The file with two of its variants, half of the traffic each; of each two replicas, which are
    on two hosts, and two of the router."""
    result = copy.deepcopy(content)
    by_name = {each["name"]: each for each in result["applications"]}
    result["applications"] = [by_name[name] for name in (ROUTER, *names)]
    for application in result["applications"]:
        [deployment] = application["deployments"]
        del deployment["autoscaling_config"]
        deployment |= {"num_replicas": 2, "max_replicas_per_node": 1}
    rules = by_name[ROUTER]["deployments"][0]["user_config"]
    rules["split"] = dict.fromkeys(names, 5000)
    rules["fallback"] = [name for name in rules["fallback"] if name in names]
    return result


def variants(content: Content) -> list[Content]:
    """The applications of variants."""
    return [each for each in content["applications"] if each["name"] != ROUTER]


def shares(content: Content) -> dict[str, tuple[str, float]]:
    """GPU type and share of one replica, by variant."""
    gpus = {each["name"]: each["args"]["gpu"] for each in variants(content)}
    return {name: (gpu["type"], gpu["fraction"]) for name, gpu in gpus.items()}
