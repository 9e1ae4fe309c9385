"""cluster/jobs/rollout against what it is to change, ask and be seen by."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from cluster.check import serve_config
from cluster.check.agreement import Objects
from cluster.check.fault import ManifestError
from cluster.check.references import scraped, selects
from cluster.check.render import CLUSTER, Manifest, of_kind, ray_service
from serve_app.config.parse import parse
from serve_app.config.rollout import RayServiceTarget, RolloutConfig
from serve_app.config.rollout_evidence import MetricsConfig, ProbesConfig

ROOT_FOLDER = "cluster/jobs/rollout"


def fits(objects: Objects, base: Objects) -> str:
    """The file that the Job is given: its target, endpoint, metrics, prompts and account exist.

    `base` is the overlay that it runs beside. Raises ManifestError.
    """
    [job] = of_kind(objects, "Job")
    pod = job["spec"]["template"]
    files = mounted(objects, pod)
    [path] = [each for each in _words(pod) if each.endswith(".yaml")]
    if path not in files:
        raise ManifestError(f"the rollout's Job reads {path}, it has {sorted(files)}")
    config = parse(RolloutConfig, yaml.safe_load(files[path]), where=path)
    service = ray_service(base)["metadata"]
    _target(config, service)
    _variants(config)
    for source in config.evidence:
        if isinstance(source, MetricsConfig):
            _prometheus(source)
        elif isinstance(source, ProbesConfig):
            _probes(source, f"{service['name']}-serve-svc", pod, files, path)
    _may_patch(base, pod["spec"]["serviceAccountName"], service["name"])
    _may_reach(base, pod)
    n_ports = scraped(objects)
    return f"{config.baseline} to {config.candidate}, {n_ports} scraped port"


def mounted(objects: Objects, pod: Manifest) -> dict[str, str]:
    """Text of each file that ConfigMaps put into the first container, by its path there."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "ConfigMap")}
    folders = {
        each["name"]: PurePosixPath(each["mountPath"])
        for each in pod["spec"]["containers"][0]["volumeMounts"]
    }
    return {
        str(folders[volume["name"]] / name): text
        for volume in pod["spec"]["volumes"]
        if "configMap" in volume
        for name, text in maps[volume["configMap"]["name"]].items()
    }


def _words(pod: Manifest) -> list[str]:
    return " ".join(pod["spec"]["containers"][0]["command"]).split()


def _target(config: RolloutConfig, service: Mapping[str, Any]) -> None:
    target = config.target
    have = {"name": service["name"], "namespace": service["namespace"], "api_url": None}
    if not isinstance(target, RayServiceTarget) or have != target.model_dump(include=set(have)):
        raise ManifestError(f"the rollout's target is {target}, the RayService {have}")


def _variants(config: RolloutConfig) -> None:
    router = serve_config.router(serve_config.content())
    split = router["user_config"]["split"]
    for name in (config.baseline, config.candidate):
        if not split.get(name):
            raise ManifestError(f"the rollout names {name}, which configs/prod.yaml gives no share")


def _prometheus(source: MetricsConfig) -> None:
    charts = yaml.safe_load((CLUSTER / "helm" / "versions.yaml").read_text())["charts"]
    hosts = {f"{each['name']}-prometheus.{each['namespace']}" for each in charts}
    for url in source.urls:
        parts = urlsplit(url)
        if parts.path != "/federate" or parts.hostname not in hosts or parts.port != 9090:
            raise ManifestError(
                f"the rollout reads {url}: routers move between nodes; need the Prometheus that "
                "finds them all, http://kube-prometheus-stack-prometheus.monitoring:9090/federate"
            )


def _probes(
    source: ProbesConfig, host: str, pod: Manifest, files: Mapping[str, str], path: str
) -> None:
    if urlsplit(source.base_url).netloc != f"{host}:8000":
        raise ManifestError(f"the rollout's probes ask {source.base_url}, need {host}:8000")
    if source.prompts is None:
        raise ManifestError("the rollout's probes have no prompts: the model's own are needed")
    text = files.get(str(PurePosixPath(path).parent / source.prompts))
    if text is None:
        raise ManifestError(f"the rollout's prompts {source.prompts} are not beside {path}")
    if not all("messages" in json.loads(line) for line in text.splitlines()):
        raise ManifestError(f"{source.prompts}: each line needs `messages`")
    given = {each["name"] for each in pod["spec"]["containers"][0]["env"]}
    if source.api_key_env not in given:
        raise ManifestError(f"the rollout's probes need {source.api_key_env}, the pod has {given}")


def _may_patch(base: Objects, account: str, service: str) -> None:
    bound = {
        each["roleRef"]["name"]
        for each in of_kind(base, "RoleBinding")
        if any(subject["name"] == account for subject in each["subjects"])
    }
    verbs = {
        verb
        for role in of_kind(base, "Role")
        if role["metadata"]["name"] in bound
        for rule in role["rules"]
        if "rayservices" in rule["resources"] and service in rule.get("resourceNames", [])
        for verb in rule["verbs"]
    }
    if verbs != {"get", "patch"}:
        raise ManifestError(f"{account} may {sorted(verbs)} RayService {service}, need get, patch")


def _may_reach(base: Objects, pod: Manifest) -> None:
    labels = pod["metadata"]["labels"]
    [policy] = [
        each for each in of_kind(base, "NetworkPolicy") if each["metadata"]["name"] == "ray"
    ]
    for rule in policy["spec"]["ingress"]:
        if {"port": 8000} in rule.get("ports", []) and any(
            selects(each["podSelector"], labels) for each in rule["from"] if "podSelector" in each
        ):
            return
    raise ManifestError(f"NetworkPolicy ray lets no pod {labels} in on 8000")
