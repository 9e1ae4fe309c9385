"""cluster/ as a real kubectl renders it, against schemas and itself; the checks see what breaks.

Skipped with the reason where there is no kubectl (`.ci/install-kubectl`) or no CRD schemas
(`QUANTILE_SCHEMAS`); where CI=true a missing kubectl is a failure.
"""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.check import agreement, references, rollout_job, schemas
from cluster.check.__main__ import main, timers_table
from cluster.check.commands import README, check_commands
from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.halves import compared_with, render_at
from cluster.check.kuberay import check_ray_service
from cluster.check.render import (
    CLUSTER,
    OVERLAYS,
    ROOT,
    of_kind,
    pod_templates,
    ray_service,
    render,
    rendered,
)
from cluster.check.serve_config import content
from cluster.check.table import one_image, rows
from loadtests.campaign import load_campaign
from serve_app.domain.errors import ConfigError
from serve_app.rollouts.state import EXIT_STATUS
from serve_app.splits.live_split import SplitUnreachableError

if shutil.which("kubectl") is None and os.environ.get("CI") != "true":
    pytest.skip("no kubectl: .ci/install-kubectl", allow_module_level=True)

PROD = "cluster/overlays/prod"


@pytest.fixture(scope="module")
def table():
    return list(rows())


def test_no_check_fails_and_those_not_made_say_why(table):
    failed = [
        f"{each.what} {each.where}: {each.detail}" for each in table if each.verdict == "fail"
    ]
    assert not failed, "\n".join(failed)
    expected = set() if has_history() else {"one half"}
    try:
        schemas.schema_folder()
    except UncheckedError:
        expected.add("schema, strict")
    skipped = [
        f"{each.what} {each.where}: {each.detail}" for each in table if each.verdict == "skip"
    ]
    unexpected = [text for text in skipped if not text.startswith(tuple(expected))]
    assert not unexpected, "\n".join(unexpected)
    assert len(table) > 110
    if skipped:
        pytest.skip("; ".join(sorted({text.partition(": ")[2] for text in skipped})))


def has_history():
    """Whether git has a commit to compare HEAD with, with overlays in it."""
    try:
        before = compared_with(ROOT)
    except UncheckedError:
        return False
    asked = ["git", "rev-parse", "--verify", f"{before}:cluster/overlays"]
    return not subprocess.run(asked, cwd=ROOT, check=False, capture_output=True).returncode


@pytest.fixture
def prod():
    return copy.deepcopy(rendered(PROD))


def group(objects, name):
    groups = ray_service(objects)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return next(each for each in groups if each["groupName"] == name)


def head(objects):
    return ray_service(objects)["spec"]["rayClusterConfig"]["headGroupSpec"]


class TestTheChecksSeeWhatBreaks:
    """Each breaks the production overlay in one place."""

    def nodes(self):
        return rendered("cluster/karpenter")

    def test_an_image_of_another_ray(self, prod):
        head(prod)["template"]["spec"]["containers"][0]["image"] = "x/quantile:0.1.0-ray2.59.0"
        with pytest.raises(ManifestError, match=r"2\.59\.0"):
            agreement.versions(prod)

    def test_an_image_without_a_version(self, prod):
        head(prod)["template"]["spec"]["containers"][0]["image"] = "x/quantile:latest"
        with pytest.raises(ManifestError, match="tag"):
            agreement.versions(prod)

    def test_a_ray_version_that_is_not_the_images(self, prod):
        ray_service(prod)["spec"]["rayClusterConfig"]["rayVersion"] = "2.61.0"
        with pytest.raises(ManifestError, match="rayVersion"):
            agreement.versions(prod)

    def test_a_copy_of_the_serve_config(self, prod):
        ray_service(prod)["spec"]["serveConfigV2"] += "\n"
        with pytest.raises(ManifestError, match=r"configs/prod\.yaml"):
            agreement.one_file(prod)

    def test_a_label_that_no_variant_selects(self, prod):
        group(prod, "l4")["labels"] = {"ray.io/accelerator-type": "L40S"}
        with pytest.raises(ManifestError, match="L4"):
            agreement.gpus(prod, whole_budget=True)

    def test_fewer_gpus_than_the_fewest_replicas_take(self, prod):
        group(prod, "a10g")["maxReplicas"] = 1
        with pytest.raises(ManifestError, match="do not fit"):
            agreement.gpus(prod, whole_budget=False)

    def test_fewer_gpus_than_the_policies_share(self, prod):
        group(prod, "l4")["maxReplicas"] = 3
        assert "pending" in agreement.gpus(prod, whole_budget=False)
        with pytest.raises(ManifestError, match="budget"):
            agreement.gpus(prod, whole_budget=True)

    @pytest.mark.parametrize("name", ["head", "l4"])
    def test_cpus_where_no_router_may_be(self, prod, name):
        started = head(prod) if name == "head" else group(prod, name)
        started["rayStartParams"]["num-cpus"] = "4"
        with pytest.raises(ManifestError):
            agreement.routers(prod)

    def test_routers_that_may_all_be_on_one_node(self, prod, monkeypatch):
        config = content()
        config["applications"][0]["deployments"][0]["max_replicas_per_node"] = 3
        monkeypatch.setattr(agreement.serve_config, "content", lambda: config)
        with pytest.raises(ManifestError, match="on one node"):
            agreement.routers(prod)

    @pytest.mark.parametrize("seconds", [630, 659, 660])
    def test_a_pod_that_is_killed_before_its_streams_end(self, prod, seconds):
        group(prod, "l4")["template"]["spec"]["terminationGracePeriodSeconds"] = seconds
        with pytest.raises(ManifestError, match="terminationGracePeriodSeconds"):
            agreement.endings(prod)

    def test_an_old_cluster_that_is_deleted_under_its_streams(self, prod):
        ray_service(prod)["spec"]["rayClusterDeletionDelaySeconds"] = 60
        with pytest.raises(ManifestError, match="rayClusterDeletionDelaySeconds"):
            agreement.endings(prod)

    @pytest.mark.parametrize("name", ["load-balancer", "target-group"])
    def test_a_load_balancer_that_gives_up_early(self, prod, name):
        [ingress] = of_kind(prod, "Ingress")
        key = f"alb.ingress.kubernetes.io/{name}-attributes"
        notes = ingress["metadata"]["annotations"]
        notes[key] = notes[key].replace("=660", "=60")
        with pytest.raises(ManifestError, match="ALB"):
            agreement.endings(prod)

    def test_an_environment_that_differs_from_make_serve(self, prod):
        env = group(prod, "h100")["template"]["spec"]["containers"][0]["env"]
        next(each for each in env if each["name"].endswith("CLIENT_S"))["value"] = "3600"
        with pytest.raises(ManifestError, match="TIMEOUT_CLIENT_S"):
            agreement.same_environment(prod)

    def test_a_setting_of_two_words_that_is_missing(self, prod):
        container = group(prod, "l4")["template"]["spec"]["containers"][0]
        container["env"] = [each for each in container["env"] if "RETRY_ON" not in each["name"]]
        with pytest.raises(ManifestError, match="conn-failure empty-response"):
            agreement.same_environment(prod)

    def test_a_vpc_of_other_subnets(self, prod):
        eks = agreement.eks_config()
        eks["vpc"]["cidr"] = "10.43.0.0/16"
        with pytest.raises(ManifestError, match="public subnets"):
            agreement.networks(prod, eks)

    def test_a_group_without_nodes(self, prod):
        group(prod, "l4")["template"]["spec"]["nodeSelector"] = {"quantile.dev/gpu": "T4"}
        with pytest.raises(ManifestError, match="NodePool"):
            agreement.node_pools(prod, self.nodes())

    def test_no_room_for_the_second_cluster_of_an_upgrade(self, prod):
        group(prod, "h100")["maxReplicas"] = 2
        with pytest.raises(ManifestError, match="h100"):
            agreement.node_pools(prod, self.nodes())

    def test_a_secret_that_nobody_creates(self, prod):
        secrets = references.created_secrets(README.read_text())
        del secrets["quantile-keys"]
        with pytest.raises(ManifestError, match="quantile-keys"):
            references.named_things_exist(prod, (), secrets)

    @pytest.mark.parametrize("field", ["serviceAccountName", "priorityClassName"])
    def test_names_that_do_not_exist(self, prod, field):
        group(prod, "cpu")["template"]["spec"][field] = "nobody"
        with pytest.raises(ManifestError, match="nobody"):
            references.named_things_exist(prod, (), references.created_secrets(README.read_text()))

    @pytest.mark.parametrize(
        "spec", [{"maxUnavailable": 1}, {"minAvailable": "50%"}, {"minAvailable": 2}]
    )
    def test_budgets_that_do_nothing_or_hold_up_every_drain(self, prod, spec):
        budget = of_kind(prod, "PodDisruptionBudget")[0]
        budget["spec"].pop("minAvailable")
        budget["spec"].update(spec)
        with pytest.raises(ManifestError, match="PDB"):
            references.disruption_budgets(prod)

    def test_a_scraped_port_that_no_pod_has(self, prod):
        containers = group(prod, "cpu")["template"]["spec"]["containers"]
        containers[0]["ports"] = [
            each for each in containers[0]["ports"] if each["name"] != "metrics"
        ]
        with pytest.raises(ManifestError, match="no port metrics"):
            references.endpoints(prod)

    def test_rights_beyond_reading(self, prod):
        eks = agreement.eks_config()
        eks["iam"]["podIdentityAssociations"][0]["permissionPolicy"]["Statement"][0]["Action"] = [
            "s3:*"
        ]
        with pytest.raises(ManifestError, match="GetObject"):
            references.rights(eks, prod, rendered("cluster/jobs/loadtest"))

    def test_a_container_that_is_root(self, prod):
        group(prod, "l4")["template"]["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0
        with pytest.raises(ManifestError, match="root"):
            references.hardened(prod)


class TestARolloutThatCannotRun:
    """Each breaks cluster/jobs/rollout, or what it needs of production, in one place."""

    @pytest.fixture
    def job(self):
        return copy.deepcopy(rendered(rollout_job.ROOT_FOLDER))

    def change_file(self, job, old, new):
        [files] = of_kind(job, "ConfigMap")
        text = files["data"]["canary-live-metrics.yaml"]
        assert old in text
        files["data"]["canary-live-metrics.yaml"] = text.replace(old, new)

    def test_as_shipped_it_fits(self, job, prod):
        assert "int8 to gptq" in rollout_job.fits(job, prod)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("namespace: quantile}", "namespace: serving}", "the RayService"),
            ("candidate: gptq", "candidate: gguf", "gguf"),
            ("kube-prometheus-stack-prometheus.monitoring:9090/federate", "head:8080/m", "routers"),
            ("prompts: prompts.jsonl", "prompts: other.jsonl", "other.jsonl"),
            ("quantile-serve-svc", "quantile-head-svc", "probes ask"),
            ("QUANTILE_API_KEY", "OTHER_KEY", "OTHER_KEY"),
        ],
    )
    def test_a_file_that_does_not_fit_the_cluster(self, job, prod, old, new, message):
        self.change_file(job, old, new)
        with pytest.raises(ManifestError, match=message):
            rollout_job.fits(job, prod)

    def test_a_file_that_is_not_there(self, job, prod):
        [files] = of_kind(job, "ConfigMap")
        files["data"]["r.yaml"] = files["data"].pop("canary-live-metrics.yaml")
        with pytest.raises(ManifestError, match="canary-live-metrics"):
            rollout_job.fits(job, prod)

    def test_an_account_that_may_not_patch(self, job, prod):
        [role] = of_kind(prod, "Role")
        role["rules"][0]["verbs"] = ["get"]
        with pytest.raises(ManifestError, match="get, patch"):
            rollout_job.fits(job, prod)

    def test_a_network_that_lets_no_probe_in(self, job, prod):
        for policy in of_kind(prod, "NetworkPolicy"):
            for rule in policy["spec"]["ingress"] if policy["metadata"]["name"] == "ray" else ():
                rule["from"] = [each for each in rule["from"] if "rollout" not in str(each)]
        with pytest.raises(ManifestError, match="8000"):
            rollout_job.fits(job, prod)

    def test_metrics_that_nobody_scrapes(self, job, prod):
        [monitor] = of_kind(job, "PodMonitor")
        monitor["spec"]["podMetricsEndpoints"][0]["port"] = "web"
        with pytest.raises(ManifestError, match="no port web"):
            rollout_job.fits(job, prod)

    def test_only_what_a_second_try_may_mend_is_tried_again(self, job):
        """podFailurePolicy names exit codes: what ends a rollout, and the callers' mistakes."""
        [manifest] = of_kind(job, "Job")
        codes = set(manifest["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"])
        ends = set(EXIT_STATUS.values()) - {0}
        assert codes == ends | {ConfigError.exit_code}
        assert SplitUnreachableError.exit_code not in codes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("serveConfigv2",), ""),
        (("rayClusterConfig", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("rayClusterConfig", "authOptions"), {"mode": "tokens"}),
        (("rayClusterConfig", "workerGroupSpecs"), [{"groupName": "a"}]),
        (("rayClusterDeletionDelaySeconds",), "900s"),
    ],
)
def test_a_wrong_ray_service_does_not_pass_its_schema(prod, path, value):
    try:
        folder = schemas.schema_folder()
    except UncheckedError as why:
        pytest.skip(str(why))
    service = ray_service(prod)
    node = service["spec"]
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(ManifestError):
        schemas.check_custom(service, folder)


def test_the_component_that_no_overlay_has_renders_and_is_taken(tmp_path):
    """incremental-upgrade, on top of prod."""
    way = os.path.relpath(CLUSTER, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"{way}/overlays/prod"],
                "components": [f"{way}/components/incremental-upgrade"],
            }
        )
    )
    service = ray_service(render(tmp_path))
    assert service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]["stepSizePercent"] == 10
    check_ray_service(service)


def test_a_job_of_another_image_than_the_others_is_refused():
    manifest = yaml.safe_load((CLUSTER / "jobs" / "quantize.yaml").read_text())
    assert "ray" in one_image(manifest)
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = "quantile:0.1.0-gpu"
    with pytest.raises(ManifestError, match="quantile:0"):
        one_image(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_pod_has_a_sidecar_that_sees_its_log_files(overlay):
    pods = pod_templates((ray_service(rendered(f"cluster/overlays/{overlay}")),))
    assert len(pods) == 5
    for _, pod in pods:
        [sidecar] = [each for each in pod["spec"]["initContainers"] if each["name"] == "logs"]
        assert sidecar["restartPolicy"] == "Always"
        program, folder = sidecar["command"]
        assert (CLUSTER / "image" / program).is_file()
        [seen] = sidecar["volumeMounts"]
        assert folder.startswith(f"{seen['mountPath']}/")
        written = {
            each["mountPath"]: each["name"] for each in pod["spec"]["containers"][0]["volumeMounts"]
        }
        assert written[seen["mountPath"]] == seen["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_named_and_never_held(overlay):
    assert not of_kind(rendered(f"cluster/overlays/{overlay}"), "Secret")


def test_the_readme_has_the_timers_as_computed():
    assert timers_table() in README.read_text()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("kubectl apply --serverside -k cluster/overlays/prod", "--serverside"),
        ("kubectl applly -k cluster/overlays/prod", "applly"),
        ("kubectl apply -k cluster/overlays/production", "not there"),
        ("quantile store pul s3://a/b@c", "pul"),
        ("quantile plan configs/prod.yaml --chek", "--chek"),
        ("cluster/scripts/instal.sh", "no program"),
        ("rm -rf cluster", "may use"),
        ('curl "https://example.com', "bash says"),
    ],
)
def test_a_wrong_command_in_the_readme_is_seen(command, said):
    with pytest.raises(ManifestError, match=said):
        check_commands(f"```bash\n{command}\n```\n")


def test_a_change_is_judged_against_a_commit(capsys):
    asked = ["git", "rev-parse", "--verify", "HEAD:cluster/overlays"]
    done = subprocess.run(asked, cwd=ROOT, check=False, capture_output=True)
    if done.returncode:
        pytest.skip("HEAD has no cluster/overlays")
    assert render_at("HEAD", "prod")["kind"] == "RayService"
    assert main(["change", "no-such-commit"]) == 1
    assert "no-such-commit" in capsys.readouterr().err


def test_wrong_arguments_say_how(capsys):
    assert main(["chek"]) == 2
    assert "python -m cluster.check" in capsys.readouterr().err


def test_the_parking_script_says_how():
    script = Path(CLUSTER / "scripts" / "park.sh")
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "park|unpark" in done.stderr


def test_the_parking_script_asks_for_what_it_waits_for(tmp_path):
    """A kubectl that only writes down what it is asked."""
    fake = tmp_path / "kubectl"
    fake.write_text('#!/bin/sh\necho "$@" >> "$ASKED"\n')
    fake.chmod(0o755)
    asked = tmp_path / "asked"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(asked)}
    script = str(CLUSTER / "scripts" / "park.sh")
    for how in ("park", "unpark"):
        subprocess.run([script, how], env=env, check=True)
    park, wait, unpark, ready = asked.read_text().splitlines()
    assert '{"spec": {"suspend": true}}' in park
    assert "condition=Suspended" in wait
    assert '{"spec": {"suspend": false}}' in unpark
    assert "condition=Ready" in ready


def test_the_campaign_of_the_load_test_asks_what_is_served():
    campaign = load_campaign(CLUSTER / "jobs" / "loadtest" / "campaign.yaml")
    served = {app["args"]["model"] for app in content()["applications"]}
    assert campaign.target.model in served
    master, workers = of_kind(rendered("cluster/jobs/loadtest"), "Job")
    command = master["spec"]["template"]["spec"]["initContainers"][0]["command"][-1]
    assert f"--remote-workers {workers['spec']['parallelism']}" in command
    assert workers["spec"]["completions"] == workers["spec"]["parallelism"]


@pytest.mark.parametrize(
    ("gpu", "variants"), [("L4", {"gptq", "awq"}), ("A10G", {"fp16", "int8"}), ("H100", {"fp8"})]
)
def test_preloading_pulls_what_the_config_serves_on_that_type(tmp_path, gpu, variants):
    """The DaemonSet's own command, with a `quantile` that only writes down what it is asked."""
    sets = of_kind(rendered("cluster/jobs/preload"), "DaemonSet")
    [pod] = [
        each["spec"]["template"]["spec"]
        for each in sets
        if each["spec"]["template"]["spec"]["nodeSelector"]["quantile.dev/gpu"] == gpu
    ]
    pull = next(each for each in pod["initContainers"] if each["name"] == "pull")
    env = {each["name"]: each["value"] for each in pull["env"]}
    *shell, script = pull["command"]
    assert "/config/prod.yaml" in script
    script = script.replace("/config/prod.yaml", str(ROOT / "configs" / "prod.yaml"))
    (tmp_path / "quantile").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "quantile").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    packages = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [*shell, script],
        env={**os.environ, **env, "PATH": path, "PYTHONPATH": packages},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    asked = {line.split("/")[-1].split("@")[0] for line in done.stdout.splitlines()}
    assert asked == variants
    assert all(line.startswith("store pull s3://") for line in done.stdout.splitlines())
