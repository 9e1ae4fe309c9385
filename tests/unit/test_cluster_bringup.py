"""The checks of the way from an account to a served model refuse what would stop it: each case
breaks one thing."""

import copy
from pathlib import Path

import pytest
import yaml

from cluster.check import account, agreement, charts, files, jobs
from cluster.check.aws import check_aws
from cluster.check.commands import README, blocks, check_commands
from cluster.check.fault import ManifestError
from cluster.check.mentions import missing
from cluster.check.table import readme_tag
from cluster.check.variables import check_variables

NODES = tuple(
    yaml.safe_load(file.read_text())
    for file in sorted(Path("cluster/karpenter").glob("node*.yaml"))
)


class TestCharts:
    def table(self):
        return charts.read_charts()

    def test_a_service_monitor_before_its_crd(self):
        table, values = self.table()
        with pytest.raises(ManifestError, match="put that one first"):
            charts.in_order(list(reversed(table)), values)

    @pytest.mark.parametrize(
        ("asked", "refused"),
        [
            ({"metrics": {"serviceMonitor": {"enabled": True}}}, True),
            ({"podMonitor": {"enabled": True}}, True),
            ({"serviceMonitor": {"enabled": False}}, False),
            ({"serviceMonitor": None}, False),
        ],
    )
    def test_what_needs_the_crd(self, asked, refused):
        table = [{"name": "a", "version": "1.0.0"}, {"name": charts.MONITORS_CRD}]
        values = {"a": asked, charts.MONITORS_CRD: {}}
        if refused:
            with pytest.raises(ManifestError, match="a has a ServiceMonitor"):
                charts.in_order(table, values)
        else:
            charts.in_order(table, values)

    @pytest.mark.parametrize(("version", "values"), [("~1.2", {}), ("1.2.3", {"featureGates": []})])
    def test_what_is_not_exact(self, version, values):
        with pytest.raises(ManifestError):
            charts.exact([{"name": "a", "version": version}], {"a": values})

    def test_gpu_nodes_that_the_device_plugin_does_not_find(self):
        values = self.table()[1]
        assert "3 pools" in charts.plugin_finds_nodes(NODES, values)
        nodes = copy.deepcopy(NODES)
        pool = next(each for each in nodes if each["metadata"]["name"] == "g6")
        del pool["spec"]["template"]["metadata"]["labels"]["nvidia.com/gpu.present"]
        with pytest.raises(ManifestError, match="no device plugin"):
            charts.plugin_finds_nodes(nodes, values)

    def test_traces_that_go_nowhere(self):
        config = Path("cluster/components/otel/config.yaml").read_text()
        collector = {
            "kind": "ConfigMap",
            "metadata": {"name": "otel-collector-x"},
            "data": {"config.yaml": config},
        }
        table = self.table()[0]
        assert charts.traces_arrive((collector,), table) == "tempo.monitoring"
        without = [each for each in table if each["name"] != "tempo"]
        with pytest.raises(ManifestError, match="no chart tempo in monitoring"):
            charts.traces_arrive((collector,), without)


class TestAccount:
    def test_a_mode_in_which_no_node_of_karpenters_may_join(self):
        eks = agreement.eks_config()
        account.nodes_may_join(eks)
        eks["accessConfig"]["authenticationMode"] = "API"
        with pytest.raises(ManifestError, match="API_AND_CONFIG_MAP"):
            account.nodes_may_join(eks)
        del eks["karpenter"]
        account.nodes_may_join(eks)

    @pytest.mark.parametrize(
        ("notes", "spec", "refused"),
        [
            ({}, {"rules": [{"host": "a.example.com"}]}, False),
            ({}, {"rules": [{}], "tls": [{"hosts": ["a.example.com"]}]}, False),
            ({"certificate-arn": "arn:x"}, {"rules": [{}]}, False),
            ({}, {"rules": [{}]}, True),
            ({"listen-ports": '[{"HTTP": 80}]'}, {"rules": [{"host": "a.example.com"}]}, True),
        ],
    )
    def test_a_listener_needs_a_certificate(self, notes, spec, refused):
        notes = {"listen-ports": '[{"HTTPS": 443}]', **notes}
        annotations = {f"alb.ingress.kubernetes.io/{name}": each for name, each in notes.items()}
        metadata = {"name": "q", "annotations": annotations}
        ingress = {"kind": "Ingress", "metadata": metadata, "spec": spec}
        if refused:
            with pytest.raises(ManifestError, match="listener"):
                account.listeners((ingress,))
        else:
            account.listeners((ingress,))

    @pytest.mark.parametrize(
        ("name", "count"),
        [("g5.2xlarge", 8), ("m7i.xlarge", 4), ("p5.4xlarge", 16), ("g6.12xlarge", 48)],
    )
    def test_vcpus(self, name, count):
        assert account.vcpus(name) == count

    def test_a_type_whose_vcpus_are_unknown(self):
        with pytest.raises(ManifestError, match=r"t3\.micro"):
            account.vcpus("t3.micro")

    @pytest.mark.parametrize("text", ["no number", "vCPUs: 64 of G, 32 of P, 64 of standard"])
    def test_quotas_too_small_for_two_clusters(self, text):
        group = {"maxReplicas": 4, "template": {"spec": {"nodeSelector": {}}}}
        groups = [
            {**group, "template": {"spec": {"nodeSelector": selector}}}
            for selector in ({"quantile.dev/gpu": "L4"}, {"quantile.dev/pool": "cpu"})
        ]
        service = {"kind": "RayService", "spec": {"rayClusterConfig": {"workerGroupSpecs": groups}}}
        eks = agreement.eks_config()
        enough = "vCPUs: 64 of G, 0 of P, 64 of standard"
        assert "G 64" in account.quotas(enough, (service,), NODES, eks)
        with pytest.raises(ManifestError, match="vCPUs"):
            account.quotas(text, (service,), NODES, eks)


class TestJobs:
    def test_a_job_without_a_deadline_may_be_waited_for_in_vain(self):
        job = yaml.safe_load(Path("cluster/jobs/publish.yaml").read_text())
        assert jobs.jobs_end((job,)) == "1 Jobs"
        del job["spec"]["activeDeadlineSeconds"]
        with pytest.raises(ManifestError, match="publish"):
            jobs.jobs_end((job,))

    def test_a_name_that_is_not_served(self):
        job = {"kind": "Job", "spec": {"command": [f"s3://quantile-models/m/fp16@{'a' * 64}"]}}
        with pytest.raises(ManifestError, match="serves other names"):
            jobs.names_are_served((job,))

    @pytest.mark.parametrize(("name", "refused"), [("", True), ("-d22f5b6ctg", False)])
    def test_a_preload_that_does_not_see_a_change(self, name, refused):
        config = {"kind": "ConfigMap", "metadata": {"name": f"serve-config{name}"}}
        if refused:
            with pytest.raises(ManifestError, match="hash"):
                jobs.restarts_with_its_config((config,))
        else:
            jobs.restarts_with_its_config((config,))


class TestReadme:
    @pytest.mark.parametrize(
        "lines",
        [
            'aws s3 mb "s3://$BUCKET"',
            'export A="$B"',
            'export A=1 B="$A"',
            "aws s3 mb s3://${BUCKET}\nexport BUCKET=x",
        ],
    )
    def test_a_variable_that_nobody_set(self, lines):
        with pytest.raises(ManifestError, match="never set before"):
            check_variables([lines])

    def test_variables_that_are_set(self):
        text = 'export A=1 C=2\nexport B="$A$PATH"\necho "${B}" $C \'$D\'\n'
        assert check_variables([text, "echo $A"]) == "3 variables"

    def test_the_readmes_own_are(self):
        text = README.read_text("utf-8")
        assert check_variables(blocks(text))
        with pytest.raises(ManifestError, match="REDIS_PASSWORD"):
            check_variables(blocks(text.replace("export REDIS_PASSWORD", "export OTHER")))

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            ("aws elasticash ls", "no service"),
            ("aws ec2 describe-subnet", "no describe-subnet"),
            ("aws ec2 describe-subnets --filter x", "--filter"),
            ("aws ec2 delete-security-group --query x", ""),
            ("aws elasticache wait replication-group-ready --replication-group-id x", "no repl"),
            ("aws elasticache delete-replication-group", "lacks --replication-group-id"),
            ("aws s3 mb s3://x --force", "--force"),
            ("make cluster-chek", "cluster-chek"),
            ('export A="$(quantile keys ad x)"', "keys ad"),
        ],
    )
    def test_a_command_that_its_program_would_not_take(self, command, said):
        if not said:
            check_aws(command.split()[1:], command)
            return
        with pytest.raises(ManifestError, match=said):
            check_commands(f"```bash\n{command}\n```\n")

    def test_the_tag_that_is_built_is_the_one_that_is_deployed(self):
        text = README.read_text("utf-8")
        assert readme_tag(text)
        with pytest.raises(ManifestError, match=r"9\.9\.9"):
            readme_tag(text.replace("export TAG=0.1.0", "export TAG=9.9.9"))


@pytest.mark.parametrize(
    "text",
    [
        "see `make cluster-diff`",
        "cluster/README.md, step 99",
        'cluster/README.md, "Load test"',
        "decision 9999",
        "decisions 0001, 0021 and 9999",
        "[9999](../serve_app/decisions/9999-nothing.md)",
        "scripts/gone.sh",
    ],
)
def test_what_is_mentioned_and_not_there(text):
    assert list(missing(text))


def test_what_is_mentioned_and_there():
    text = (
        '`make cluster-check`, cluster/README.md, step 4, cluster/README.md, "Jobs", decision 0029'
    )
    assert not list(missing(f"{text}, scripts/park.sh, ../serve_app/decisions/0029-cluster.md"))


@pytest.mark.parametrize(
    ("old", "said"), [(r"hatchling==1.33.0", "hatchling"), ("editables==0.6", "editables")]
)
def test_a_build_tool_without_a_version(old, said):
    text = Path("cluster/image/Dockerfile").read_text()
    pins = Path("constraints.txt").read_text(), Path("pyproject.toml").read_text()
    files.dockerfile(text, *pins)
    with pytest.raises(ManifestError, match=said):
        files.dockerfile(text.replace(old, old.partition("=")[0]), *pins)
