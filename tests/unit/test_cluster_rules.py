"""The checks of cluster/ refuse what they are there to refuse: each case breaks one thing."""

import copy
import json
import re
from pathlib import Path

import pytest

from cluster.check import files, kuberay, schemas, timers
from cluster.check.commands import commands
from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.halves import check_halves
from cluster.check.references import created_secrets, selects
from cluster.check.serve_config import content, times
from cluster.check.units import attributes, go_duration_s


def service() -> dict:
    """A RayService that KubeRay takes, with all that the rules look at."""
    pod = {"spec": {"containers": [{"name": "ray", "image": "i", "env": []}]}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "quantile", "annotations": {kuberay.TIMEOUT: "60m"}},
        "spec": {
            "serveConfigV2": "applications: []",
            "upgradeStrategy": {
                "type": "NewClusterWithIncrementalUpgrade",
                "clusterUpgradeOptions": {
                    "gatewayClassName": "istio",
                    "stepSizePercent": 10,
                    "intervalSeconds": 30,
                    "maxSurgePercent": 50,
                },
            },
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 600},
                "gcsFaultToleranceOptions": {"redisAddress": "redis:6379"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": copy.deepcopy(pod),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "l4",
                        "minReplicas": 0,
                        "maxReplicas": 4,
                        "priority": 1,
                        "idleTimeoutSeconds": 600,
                        "labels": {"ray.io/accelerator-type": "L4"},
                        "rayStartParams": {"num-cpus": "0"},
                        "template": copy.deepcopy(pod),
                    }
                ],
            },
        },
    }


def changed(path: str, value: object) -> dict:
    """`service()` with one value set; a path's numbers are places in lists."""
    result = service()
    *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    node = result
    for step in way:
        node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
    if value is None:
        node.pop(last)
    else:
        node[last] = value
    return result


CLUSTER = "spec/rayClusterConfig"
HEAD = f"{CLUSTER}/headGroupSpec"
GROUP = f"{CLUSTER}/workerGroupSpecs/0"
OPTIONS = "spec/upgradeStrategy/clusterUpgradeOptions"
REFUSED = [
    ("metadata/name", "q" * 48, "DNS 1035"),
    ("metadata/name", "1st", "DNS 1035"),
    (f"metadata/annotations/{kuberay.TIMEOUT.replace('/', '%')}", "soon", "duration"),
    ("spec/upgradeStrategy/type", "Rolling", "upgradeStrategy.type"),
    ("spec/rayClusterDeletionDelaySeconds", -1, "negative"),
    (f"{OPTIONS}/stepSizePercent", 60, "stepSizePercent"),
    (f"{OPTIONS}/maxSurgePercent", 101, "maxSurgePercent"),
    (f"{OPTIONS}/intervalSeconds", 0, "intervalSeconds"),
    (f"{OPTIONS}/gatewayClassName", "", "gatewayClassName"),
    (OPTIONS, None, "clusterUpgradeOptions"),
    (f"{CLUSTER}/enableInTreeAutoscaling", False, "enableInTreeAutoscaling"),
    (f"{HEAD}/headService", {"metadata": {"name": "h"}}, "headService"),
    (f"{HEAD}/template/spec/containers", [], "no container"),
    (f"{HEAD}/template/spec/restartPolicy", "Always", "restartPolicy"),
    (f"{GROUP}/template/spec/restartPolicy", "OnFailure", "restartPolicy"),
    (f"{GROUP}/resources", {"CPU": "1"}, "use one"),
    (f"{GROUP}/rayStartParams/labels", "a=b", "labels"),
    (f"{GROUP}/labels", {"a": "not a label"}, "syntax"),
    (f"{GROUP}/minReplicas", 5, "above maxReplicas"),
    (f"{GROUP}/minReplicas", -1, "negative"),
    (f"{GROUP}/idleTimeoutSeconds", -1, "idleTimeoutSeconds"),
    (f"{GROUP}/suspend", True, "suspended"),
    (f"{CLUSTER}/autoscalerOptions/version", "v1", "autoscaler v2"),
    (f"{CLUSTER}/rayVersion", "2.55.0", "priority"),
    (f"{CLUSTER}/rayVersion", "2.51.0", "token"),
    (f"{CLUSTER}/rayVersion", "", "token"),
    (f"{CLUSTER}/authOptions/enableK8sTokenAuth", True, "enableK8sTokenAuth"),
    (f"{CLUSTER}/networkPolicy", {"mode": "DenyAll"}, "feature gate"),
    (f"{CLUSTER}/gcsFaultToleranceOptions/backend", "rocksdb", "rocksdb"),
    (f"{HEAD}/rayStartParams/redis-password", "x", "redisPassword"),
    (f"{HEAD}/template/spec/containers/0/env", [{"name": "REDIS_PASSWORD"}], "REDIS_PASSWORD"),
    (f"{CLUSTER}/upgradeStrategy", {"type": "Recreate"}, "upgradeStrategy"),
]


def test_kuberay_takes_the_sound_service():
    kuberay.check_ray_service(service())


@pytest.mark.parametrize(("path", "value", "said"), REFUSED)
def test_what_kuberay_refuses_is_refused(path, value, said):
    if "%" in path:
        broken = service()
        broken["metadata"]["annotations"][kuberay.TIMEOUT] = value
    else:
        broken = changed(path, value)
    with pytest.raises(ManifestError, match=re.escape(said)):
        kuberay.check_ray_service(broken)


class TestHalves:
    def test_the_config_alone_is_put_to_the_running_cluster(self):
        new = changed("spec/serveConfigV2", "applications: [x]")
        assert "running cluster" in check_halves(service(), new)

    def test_an_image_alone_makes_a_second_cluster(self):
        new = changed(f"{GROUP}/template/spec/containers/0/image", "j")
        assert "second cluster" in check_halves(service(), new)

    def test_both_are_refused(self):
        new = changed(f"{GROUP}/template/spec/containers/0/image", "j")
        new["spec"]["serveConfigV2"] = "applications: [x]"
        with pytest.raises(ManifestError, match="two steps"):
            check_halves(service(), new)

    @pytest.mark.parametrize("free", ["replicas", "minReplicas", "maxReplicas"])
    def test_replicas_make_no_cluster(self, free):
        new = changed(f"{GROUP}/{free}", 1)
        new["spec"]["serveConfigV2"] = "applications: [x]"
        assert "running cluster" in check_halves(service(), new)

    def test_a_group_at_the_end_makes_no_cluster_and_one_before_does(self):
        new = service()
        group = {**copy.deepcopy(new["spec"]["rayClusterConfig"]["workerGroupSpecs"][0])}
        group["groupName"] = "b200"
        groups = new["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        groups.append(group)
        assert "no change" in check_halves(service(), new)
        groups.reverse()
        assert "second cluster" in check_halves(service(), new)


class TestTimers:
    NODES = tuple(
        {
            "kind": "NodePool",
            "metadata": {"name": name},
            "spec": {"disruption": {"consolidateAfter": after}},
        }
        for name, after in (("a", "5m"), ("b", "90s"))
    )

    def series(self, broken: dict, nodes=NODES):
        head = broken["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
        name = "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"
        head["containers"][0]["env"].append({"name": name, "value": "2"})
        return timers.series_of((broken,), nodes, times(content()))

    def test_waits_add_up(self):
        up, wake, down, leftovers = self.series(service())
        assert up.total_s == sum(step.seconds for step in up.steps)
        assert wake.total_s == up.total_s - 15 - 2 - 2
        assert down.total_s == 15 + 300 + 600 + 600 + 300
        assert leftovers.total_s == down.total_s + 310 + 60 + 120 + 600

    def test_a_node_must_outlast_the_policys_delay_and_an_engines_start(self):
        with pytest.raises(ManifestError, match="come and go"):
            self.series(changed(f"{GROUP}/idleTimeoutSeconds", 480))
        self.series(changed(f"{GROUP}/idleTimeoutSeconds", 481))

    @pytest.mark.parametrize("after", ["30s", "Never"])
    def test_karpenter_waits_and_ends(self, after):
        node = copy.deepcopy(self.NODES[0])
        node["spec"]["disruption"]["consolidateAfter"] = after
        with pytest.raises(ManifestError, match="consolidateAfter"):
            self.series(service(), (node,))

    def test_the_initialising_timeout_leaves_room_for_two_starts(self):
        broken = service()
        broken["metadata"]["annotations"][kuberay.TIMEOUT] = "10m"
        with pytest.raises(ManifestError, match="initializing-timeout"):
            self.series(broken)


SCHEMA = {
    "type": "object",
    "properties": {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["name", "step"],
            "properties": {
                "name": {"type": "string"},
                "step": {"type": "integer", "default": 1},
                "port": {"x-kubernetes-int-or-string": True, "anyOf": []},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "tags": {"type": "object", "additionalProperties": {"type": "string"}},
                "none": {"type": "string", "nullable": True},
            },
        },
    },
}


class TestSchemas:
    @pytest.fixture
    def folder(self, tmp_path):
        file = tmp_path / "example.com_v1_Thing.json"
        file.write_text(json.dumps({"openAPIV3Schema": SCHEMA}))
        return tmp_path

    def check(self, folder: Path, **spec: object) -> None:
        thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}}
        schemas.check_custom({**thing, "spec": {"name": "n", **spec}}, folder)

    @pytest.mark.parametrize(
        "spec",
        [
            {},
            {"port": 80},
            {"port": "http"},
            {"free": {"a": 1}},
            {"tags": {"a": "b"}},
            {"none": None},
        ],
    )
    def test_what_a_server_takes(self, folder, spec):
        self.check(folder, **spec)

    @pytest.mark.parametrize(
        "spec",
        [
            {"nmae": "x"},
            {"name": 1},
            {"port": 1.5},
            {"tags": {"a": 1}},
            {"step": "1"},
            {"name": None},
        ],
    )
    def test_what_a_server_refuses(self, folder, spec):
        with pytest.raises(ManifestError):
            self.check(folder, **spec)

    def test_a_missing_schema_is_no_pass(self, tmp_path):
        with pytest.raises(UncheckedError, match="no schema"):
            self.check(tmp_path)

    def test_a_missing_folder_says_what_to_set(self):
        with pytest.raises(UncheckedError, match="QUANTILE_SCHEMAS"):
            schemas.schema_folder({"QUANTILE_SCHEMAS": "/nowhere"})

    @pytest.mark.parametrize(
        ("version", "core"),
        [
            ("v1", True),
            ("apps/v1", True),
            ("networking.k8s.io/v1", True),
            ("gateway.networking.k8s.io/v1", False),
            ("karpenter.sh/v1", False),
            ("karpenter.k8s.aws/v1", False),
            ("ray.io/v1", False),
        ],
    )
    def test_whose_kind_it_is(self, version, core):
        assert schemas.is_core({"apiVersion": version}) is core


class TestDockerfile:
    TEXT = Path("cluster/image/Dockerfile").read_text()
    PINS = Path("constraints.txt").read_text(), Path("pyproject.toml").read_text()

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            (r"@sha256:\w+", "", "digest"),
            ("3.11-slim", "3.12-slim", "3.11"),
            (r" wget", "", "wget"),
            (r"(?s)USER 1000:1000\nWORKDIR", "WORKDIR", "serve must end"),
            (r"--constraint /tmp\S+", "", "--constraint"),
        ],
    )
    def test_what_is_not_pinned_or_root_is_refused(self, old, new, said):
        with pytest.raises(ManifestError, match=said):
            files.dockerfile(re.sub(old, new, self.TEXT), *self.PINS)

    def test_another_vllm_in_the_image_is_refused(self):
        constraints, project = self.PINS
        other = project.replace("vllm==0.32.0", "vllm==0.33.0")
        with pytest.raises(ManifestError, match="vLLM"):
            files.dockerfile(self.TEXT, constraints, other)


def test_commands_are_found_through_pipes_and_continued_lines():
    text = "```bash\n# no\na --b | c d && e\nf \\\n  --g\n```\n```yaml\nkind: x\n```\n"
    assert list(commands(text)) == ["a --b", "c d", "e", "f   --g".replace("   ", " ")]


def test_secrets_that_the_readme_creates():
    text = 'kubectl create secret generic a -n q --from-literal=x="$(y z)" --from-file=k.yaml=f\n'
    assert created_secrets(text) == {"a": {"x", "k.yaml"}}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60m", 3600), ("1h30m", 5400), ("90", 90), ("500ms", 0.5), ("Never", None), ("", None)],
)
def test_go_durations(text, seconds):
    assert go_duration_s(text) == seconds


def test_attributes_of_an_alb():
    assert attributes("a=1,b.c=x=y") == {"a": "1", "b.c": "x=y"}


@pytest.mark.parametrize(
    ("expression", "taken"),
    [
        ({"key": "a", "operator": "In", "values": ["1"]}, True),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, False),
        ({"key": "b", "operator": "Exists"}, False),
        ({"key": "b", "operator": "DoesNotExist"}, True),
    ],
)
def test_label_selectors(expression, taken):
    assert selects({"matchExpressions": [expression]}, {"a": "1"}) is taken
    assert not selects({"matchLabels": {"a": "2"}, "matchExpressions": [expression]}, {"a": "1"})
