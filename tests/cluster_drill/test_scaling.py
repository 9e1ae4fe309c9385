"""`configs/prod.yaml` under Ray's autoscaler v2: GPU nodes come for replicas, and go with them."""

from collections import Counter, defaultdict

import pytest

from cluster.check.serve_config import accelerator_of, content, fewest_gpus
from tests.cluster_drill import lab as labs
from tests.cluster_drill.kuberay import groups, ray_cluster, ray_service
from tests.cluster_drill.report import ROWS, Row
from tests.cluster_drill.scaling import LOADED
from tests.cluster_drill.serve_files import shares

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

SHARES = shares(content())


@pytest.fixture(scope="module")
def seen(lab, folder):
    facts = labs.run("tests.cluster_drill.scaling", folder / "scaling", timeout_s=840)
    answers = facts["answers"]
    for stage in facts["stages"]:
        nodes = ", ".join(f"{n} {name}" for name, n in sorted(stage["nodes"].items()))
        told = f"{len(stage['places'])} replicas on {nodes}"
        ROWS.append(Row(f"prod.yaml: {stage['stage']}", stage["s"], seen=told))
    n_all, n_ok = sum(answers.values()), answers.get("ok", 0)
    ROWS.append(Row("prod.yaml: the load", requests=n_all, failed=n_all - n_ok))
    return facts


@pytest.fixture(scope="module")
def stages(seen):
    return {each["stage"]: each for each in seen["stages"]}


def gpu_nodes(stage) -> dict[str, int]:
    """By accelerator type."""
    specs = groups(ray_cluster(ray_service(), idle_s=1))
    labels = {
        name: spec.get("labels", {}).get("ray.io/accelerator-type") for name, spec in specs.items()
    }
    return {labels[name]: n for name, n in stage["nodes"].items() if labels[name]}


def variants(stage) -> Counter:
    return Counter(each["application"] for each in stage["places"] if each["application"] in SHARES)


def test_without_replicas_there_are_no_gpu_nodes(stages):
    assert stages["head"]["nodes"] == {"cpu": 2}, "what the RayService says of the group cpu"


def test_the_fewest_replicas_bring_the_nodes_that_the_plan_counts(stages):
    planned = {accelerator_of(name): n for name, n in fewest_gpus().items()}
    assert gpu_nodes(stages["fewest replicas"]) == planned
    assert variants(stages["fewest replicas"]) == dict.fromkeys(SHARES, 1)


@pytest.mark.parametrize("stage", ["fewest replicas", "under load", "load gone"])
def test_each_replica_has_its_share_of_its_gpu_type_and_no_gpu_is_overfull(stages, stage):
    taken = defaultdict(float)
    for each in stages[stage]["places"]:
        if each["application"] in SHARES:
            gpu_type, fraction = SHARES[each["application"]]
            assert each["gpu_type"] == accelerator_of(gpu_type), each
            assert each["fraction"] == pytest.approx(fraction), each
            taken[each["pod"]] += each["fraction"]
        else:
            assert each["fraction"] == 0
    assert max(taken.values()) <= 1.0, taken


def test_routers_are_on_nodes_of_their_own(stages):
    pods = [
        each["pod"]
        for each in stages["fewest replicas"]["places"]
        if each["application"] == "router"
    ]
    assert len(set(pods)) == 2
    assert all("-cpu-" in pod for pod in pods), pods


def test_load_brings_replicas_and_only_the_nodes_that_they_need(stages):
    """Two more of AWQ share one new L4; four of FP8 fit the H100 that is there; INT8 fills a
    whole A10G."""
    assert variants(stages["under load"]) == {**dict.fromkeys(SHARES, 1), **LOADED}
    before, after = gpu_nodes(stages["fewest replicas"]), gpu_nodes(stages["under load"])
    assert after == {**before, "L4": before["L4"] + 1, "A10G": before["A10G"] + 1}


def test_without_load_the_nodes_go_again(stages):
    assert variants(stages["load gone"]) == dict.fromkeys(SHARES, 1)
    assert gpu_nodes(stages["load gone"]) == gpu_nodes(stages["fewest replicas"])


def test_no_request_failed(seen):
    assert seen["answers"].keys() == {"ok"}, seen["answers"]
    assert seen["answers"]["ok"] >= 200
