"""KubeRay's part, as the drills play it, without a cluster."""

import pytest

from cluster.check.serve_config import content
from tests.cluster_drill.kuberay import (
    HEAD_GROUP,
    Pod,
    changes,
    environment,
    patched,
    ray_cluster,
    ray_service,
    ray_start,
)
from tests.cluster_drill.serve_files import (
    hurried,
    shares,
    variants,
    with_fake_engines,
    with_two_variants,
)

HEAD = Pod("head-1", HEAD_GROUP, "10.0.0.1")
SECRETS = {"RAY_AUTH_TOKEN": "t", "REDIS_PASSWORD": "r", "QUANTILE_INTERNAL_TOKEN": "q"}


@pytest.fixture
def cluster():
    return ray_cluster(ray_service(), idle_s=5)


def group_of(cluster, name):
    return next(each for each in cluster["spec"]["workerGroupSpecs"] if each["groupName"] == name)


def workers(group, n):
    return [Pod(f"{group}-{i}", group, f"10.0.1.{i}") for i in range(n)]


def test_a_new_cluster_gets_a_head_and_the_replicas_of_each_group(cluster):
    assert changes(cluster, []) == ([HEAD_GROUP, "cpu", "cpu"], [])
    assert changes(cluster, [HEAD, *workers("cpu", 2)]) == ([], [])


def test_the_pods_that_the_autoscaler_names_are_deleted_and_no_others(cluster):
    group_of(cluster, "l4")["replicas"] = 1
    group_of(cluster, "l4")["scaleStrategy"] = {"workersToDelete": ["l4-0"]}
    pods = [HEAD, *workers("cpu", 2), *workers("l4", 2)]
    assert changes(cluster, pods) == ([], ["l4-0"])


def test_a_group_never_has_more_than_its_maximum(cluster):
    group_of(cluster, "h100")["replicas"] = 5
    make, _ = changes(cluster, [HEAD, *workers("cpu", 2)])
    assert make == ["h100"]


def test_the_head_takes_no_work_and_a_gpu_node_says_what_it_has(cluster):
    head = ray_start(cluster, HEAD_GROUP, "10.0.0.1")
    assert {"--head", "--num-cpus=0", "--no-monitor", "--dashboard-host=0.0.0.0"} <= set(head)
    assert "--redis-password=$REDIS_PASSWORD" in head
    l4 = ray_start(cluster, "l4", "10.0.0.1")
    assert {"--address=10.0.0.1:6379", "--num-gpus=1", "--num-cpus=0"} <= set(l4)
    assert {"--labels=ray.io/accelerator-type=L4", f"--memory={24 * 2**30}"} <= set(l4)


def test_redis_is_the_heads_and_workers_wait_for_another_head(cluster):
    head = environment(cluster, HEAD_GROUP, "head-1", "10.0.0.1", SECRETS)
    assert head["RAY_REDIS_ADDRESS"] == "redis:6379" and head["REDIS_PASSWORD"] == "r"
    worker = environment(
        cluster, "l4", "l4-1", "10.0.0.1", SECRETS | {"QUANTILE_API_KEYS_FILE": ""}
    )
    assert "REDIS_PASSWORD" not in worker
    assert worker["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"
    assert worker["RAY_CLOUD_INSTANCE_ID"] == "l4-1" and worker["RAY_NODE_TYPE_NAME"] == "l4"
    assert worker["QUANTILE_INTERNAL_TOKEN"] == "q"
    with pytest.raises(KeyError, match="QUANTILE_INTERNAL_TOKEN"):
        environment(cluster, "l4", "l4-1", "10.0.0.1", {"RAY_AUTH_TOKEN": "t"})


def test_a_patch_replaces_what_is_there_and_is_refused_otherwise(cluster):
    path = "/spec/workerGroupSpecs/1/replicas"
    after = patched(cluster, [{"op": "replace", "path": path, "value": 3}])
    assert after["spec"]["workerGroupSpecs"][1]["replicas"] == 3
    assert cluster["spec"]["workerGroupSpecs"][1]["replicas"] == 0
    for path, op in (("/spec/workerGroupSpecs/9/replicas", "replace"), ("/spec/x/y", "replace")):
        with pytest.raises(ValueError, match="there is no"):
            patched(cluster, [{"op": op, "path": path, "value": 3}])
    with pytest.raises(ValueError, match="not there"):
        patched(cluster, [{"op": "replace", "path": "/spec/x", "value": 3}])
    with pytest.raises(ValueError, match="not understood"):
        patched(cluster, [{"op": "add", "path": "/spec/rayVersion", "value": "3"}])


def test_only_what_needs_a_gpu_or_s3_is_taken_out_of_the_serve_file():
    before, after = content(), with_fake_engines(content(), {"ttft_ms": 1})
    assert shares(after) == shares(before)
    for application in variants(after):
        engine = application["args"]["engine"]
        assert (engine.pop("kind"), engine.pop("fake")) == ("fake", {"ttft_ms": 1})
        application["args"]["checkpoint"] = next(
            each["args"]["checkpoint"]
            for each in variants(before)
            if each["name"] == application["name"]
        )
    assert after == before


def test_waits_are_cut_short_and_nothing_else():
    before, after = content(), hurried(content(), look_back_s=1, downscale_delay_s=2)
    for application, was in zip(variants(after), variants(before), strict=True):
        scaling = application["deployments"][0]["autoscaling_config"]
        scaling_was = was["deployments"][0]["autoscaling_config"]
        assert scaling["look_back_period_s"] == 1
        assert scaling["policy"]["policy_kwargs"].pop("downscale_delay_s") == 2
        scaling["look_back_period_s"] = scaling_was["look_back_period_s"]
    assert after == before


def test_two_variants_have_two_replicas_each_on_two_hosts():
    after = with_two_variants(content(), ("gptq", "awq"))
    assert [each["name"] for each in after["applications"]] == ["router", "gptq", "awq"]
    for application in after["applications"]:
        [deployment] = application["deployments"]
        assert (deployment["num_replicas"], deployment["max_replicas_per_node"]) == (2, 1)
        assert "autoscaling_config" not in deployment
    rules = after["applications"][0]["deployments"][0]["user_config"]
    assert rules["split"] == {"gptq": 5000, "awq": 5000} and rules["fallback"] == ["awq", "gptq"]
