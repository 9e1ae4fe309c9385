"""Every check with its verdict: pass, fail, or not made here and why."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from cluster.check import (
    account,
    agreement,
    charts,
    files,
    jobs,
    kuberay,
    references,
    rollout_job,
    schemas,
    serve_config,
    timers,
)
from cluster.check.commands import README, check_commands
from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.halves import check_last_change
from cluster.check.mentions import check_mentions
from cluster.check.render import OVERLAYS, ROOTS, Manifest, plain_manifests, ray_service, rendered
from cluster.check.rules import check_rules
from serve_app.domain.errors import QuantileError

WHOLE_BUDGET = {"staging", "prod"}
"""Overlays whose groups give all the GPUs that the scaling policies share."""


@dataclass(frozen=True)
class Row:
    """One check of one thing."""

    what: str
    where: str
    verdict: str
    detail: str


def rows() -> Iterator[Row]:
    """All of them, one after the other."""
    for root in ROOTS:
        yield row("renders", root, partial(_rendered, root))
        yield row("schema, strict", root, partial(_schemas_of, root))
    for file, manifest in plain_manifests():
        yield row("schema, strict", file, partial(_schemas, (manifest,)))
        yield row("names exist", file, partial(_references, (manifest,)))
        yield row("hardened", file, partial(references.hardened, (manifest,)))
        yield row("one image", file, partial(one_image, manifest))
        yield row("one name", file, partial(jobs.names_are_served, (manifest,)))
        yield row("ends", file, partial(jobs.jobs_end, (manifest,)))
    yield row("schema, strict", "cluster/eks/cluster.yaml", _eksctl)
    for name in OVERLAYS:
        yield from _overlay(name)
    for job in ("cluster/jobs/preload", "cluster/jobs/loadtest", rollout_job.ROOT_FOLDER):
        yield row("names exist", job, partial(_references_of, job))
        yield row("hardened", job, partial(_hardened_of, job))
    yield row("rollout", rollout_job.ROOT_FOLDER, _rollout)
    yield row("restarts", "cluster/jobs/preload", _preload)
    yield row("ends", "cluster/jobs/loadtest", _loadtest_ends)
    yield row("AWS rights", "cluster/eks/cluster.yaml", _rights)
    yield row("nodes join", "cluster/eks/cluster.yaml", _nodes_join)
    yield row("vCPUs", "cluster/README.md", _quotas)
    yield row("one image", "cluster/README.md", lambda: readme_tag(README.read_text("utf-8")))
    yield row("GPUs appear", "cluster/karpenter", _plugin)
    yield row("pins", "cluster/image/Dockerfile", files.check_dockerfile)
    yield row("charts", "cluster/helm", charts.check_charts)
    yield row("alerts", "cluster/monitoring", check_rules)
    yield row("commands", "cluster/README.md", lambda: check_commands(README.read_text("utf-8")))
    yield row("mentions", "cluster", check_mentions)


def row(what: str, where: str, check: Callable[[], str]) -> Row:
    """Make one check."""
    try:
        return Row(what, where, "pass", check())
    except UncheckedError as error:
        return Row(what, where, "skip", str(error))
    except QuantileError as error:
        return Row(what, where, "fail", str(error))


def scaling_series(overlay: str = "prod") -> tuple[timers.Series, ...]:
    """The timers of an overlay, in series."""
    times = serve_config.times(serve_config.content())
    return timers.series_of(
        rendered(f"cluster/overlays/{overlay}"), rendered("cluster/karpenter"), times
    )


def _overlay(name: str) -> Iterator[Row]:
    root = f"cluster/overlays/{name}"

    def of(what: str, check: Callable[[tuple[Manifest, ...]], str]) -> Row:
        return row(what, root, lambda: check(rendered(root)))

    yield of("KubeRay's rules", _kuberay)
    yield of("one Serve config", agreement.one_file)
    yield of("one Ray", agreement.versions)
    yield of("GPUs", lambda objects: agreement.gpus(objects, whole_budget=name in WHOLE_BUDGET))
    yield of("routers", agreement.routers)
    yield of("endings", agreement.endings)
    yield of("environment", agreement.same_environment)
    yield of("networks", lambda objects: agreement.networks(objects, agreement.eks_config()))
    yield of("nodes", lambda objects: agreement.node_pools(objects, rendered("cluster/karpenter")))
    yield of("names exist", _references)
    yield of("disruption", references.disruption_budgets)
    yield of("endpoints", references.endpoints)
    yield of("hardened", references.hardened)
    yield of("listener", account.listeners)
    yield of("traces", lambda objects: charts.traces_arrive(objects, charts.read_charts()[0]))
    yield row("one half", root, partial(check_last_change, name))
    yield row("timers", root, lambda: _timers(name))


def _rendered(root: str) -> str:
    return f"{len(rendered(root))} objects"


def _schemas_of(root: str) -> str:
    return _schemas(rendered(root))


def _schemas(objects: tuple[Manifest, ...]) -> str:
    unchecked = []
    for each in objects:
        try:
            schemas.check_object(each)
        except UncheckedError as error:
            unchecked.append(str(error))
    if unchecked:
        raise UncheckedError(f"{len(unchecked)} of {len(objects)}: {unchecked[0]}")
    return f"{len(objects)} objects"


def _eksctl() -> str:
    schemas.check_eksctl(agreement.eks_config(), schemas.schema_folder())
    return "ClusterConfig"


def _kuberay(objects: tuple[Manifest, ...]) -> str:
    kuberay.check_ray_service(ray_service(objects))
    return "1.7.0"


def _references(objects: tuple[Manifest, ...]) -> str:
    secrets = references.created_secrets(README.read_text("utf-8"))
    return references.named_things_exist(objects, rendered("cluster/overlays/prod"), secrets)


def _references_of(root: str) -> str:
    return _references(rendered(root))


def _hardened_of(root: str) -> str:
    return references.hardened(rendered(root))


def one_image(manifest: Manifest) -> str:
    """A file that is created as it is has the image that kustomize gives the others."""
    have = agreement.images((manifest,))
    known = {f"{each['newName']}:{each['newTag']}" for each in agreement.image_table()}
    if not have <= known:
        raise ManifestError(f"images {sorted(have - known)}: cluster/image has {sorted(known)}")
    return ", ".join(sorted(each.rpartition("/")[2] for each in have)) or "none"


def readme_tag(readme: str) -> str:
    """The README builds and pushes the tag that kustomize puts into the manifests."""
    built = set(re.findall(r"^export TAG=(\S+)$", readme, re.M))
    known = {each["newTag"] for each in agreement.image_table() if "newTag" in each}
    if built != known:
        raise ManifestError(f"README builds tag {sorted(built)}, cluster/image has {sorted(known)}")
    return ", ".join(sorted(known))


def _rights() -> str:
    return references.rights(
        agreement.eks_config(), rendered("cluster/overlays/prod"), rendered("cluster/jobs/loadtest")
    )


def _rollout() -> str:
    objects = rendered(rollout_job.ROOT_FOLDER)
    return rollout_job.fits(objects, rendered("cluster/overlays/prod"))


def _nodes_join() -> str:
    return account.nodes_may_join(agreement.eks_config())


def _quotas() -> str:
    prod, nodes = rendered("cluster/overlays/prod"), rendered("cluster/karpenter")
    return account.quotas(README.read_text("utf-8"), prod, nodes, agreement.eks_config())


def _plugin() -> str:
    return charts.plugin_finds_nodes(rendered("cluster/karpenter"), charts.read_charts()[1])


def _preload() -> str:
    return jobs.restarts_with_its_config(rendered("cluster/jobs/preload"))


def _loadtest_ends() -> str:
    return jobs.jobs_end(rendered("cluster/jobs/loadtest"))


def _timers(name: str) -> str:
    return ", ".join(f"{each.name} {each.total_s:.0f} s" for each in scaling_series(name))
