"""cluster/scripts with programs that only write down what they are asked; the check of the last
change on a git history of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.check import halves
from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.render import CLUSTER, ROOT, of_kind, render

SCRIPTS = CLUSTER / "scripts"
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None and os.environ.get("CI") != "true",
    reason="no kubectl: .ci/install-kubectl",
)


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def run(script: Path, *arguments: str, path: Path | None = None, **env: str):
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        [script, *arguments], env={**os.environ, "PATH": search, **env},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def copied(tmp_path):
    """cluster/ and configs/ alone, to be changed."""
    leave = shutil.ignore_patterns("__pycache__", "*.json.lock")
    for name in ("cluster", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave)
    return tmp_path


class TestNames:
    ACCOUNT, HOST = "210987654321", "llm.acme.test"

    def asked(self, copied: Path):
        return run(copied / "cluster" / "scripts" / "names.sh", self.ACCOUNT, self.HOST)

    def test_ours_are_gone_and_a_second_run_changes_nothing(self, copied):
        assert self.asked(copied).returncode == 0
        files = [*copied.rglob("*.yaml"), copied / "configs" / "prod.facts.json"]
        texts = {file: file.read_text() for file in files}
        for file, text in texts.items():
            assert "111122223333.dkr" not in text, file
            for line in text.splitlines():
                for bucket in ("quantile-models", "quantile-results"):
                    assert bucket not in line or f"{bucket}-{self.ACCOUNT}" in line, (file, line)
        assert self.asked(copied).returncode == 0
        assert texts == {file: file.read_text() for file in files}

    @needs_kubectl
    def test_what_is_applied_has_them(self, copied):
        self.asked(copied)
        objects = render(copied / "cluster" / "overlays" / "prod")
        [ingress] = of_kind(objects, "Ingress")
        assert ingress["spec"]["rules"][0]["host"] == self.HOST
        [service] = of_kind(objects, "RayService")
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        checkpoints = {app["args"].get("checkpoint", "") for app in config["applications"]} - {""}
        assert all(f"quantile-models-{self.ACCOUNT}/" in each for each in checkpoints)
        head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
        assert head["containers"][0]["image"].startswith(f"{self.ACCOUNT}.dkr.ecr.us-east-1.")

    @pytest.mark.parametrize("arguments", [[], ["123", "a.example.com"], ["2" * 12, "localhost"]])
    def test_wrong_arguments_change_nothing(self, copied, arguments):
        done = run(copied / "cluster" / "scripts" / "names.sh", *arguments)
        assert done.returncode == 2
        assert "usage" in done.stderr
        image = (copied / "cluster" / "image" / "kustomization.yaml").read_text()
        assert image == (CLUSTER / "image" / "kustomization.yaml").read_text()


class TestWaitJob:
    @pytest.mark.parametrize(
        ("last", "status"), [("SuccessCriteriaMet Complete", 0), ("FailureTarget Failed", 1)]
    )
    def test_it_ends_with_the_job_whichever_way(self, tmp_path, last, status):
        said = tmp_path / "said"
        said.write_text(f"\nSuspended\n{last}\n")
        program(tmp_path, "kubectl", f'head -n 1 "{said}"; sed -i 1d "{said}"')
        program(tmp_path, "sleep", ":")
        done = run(SCRIPTS / "wait-job.sh", "job/x", path=tmp_path)
        assert done.returncode == status
        assert "job/x" in done.stdout + done.stderr
        assert said.read_text() == ""

    def test_a_job_that_is_not_there_is_not_waited_for(self, tmp_path):
        program(tmp_path, "kubectl", "echo NotFound >&2; exit 4")
        assert run(SCRIPTS / "wait-job.sh", "job/x", path=tmp_path).returncode == 4

    def test_wrong_arguments_say_how(self):
        done = run(SCRIPTS / "wait-job.sh")
        assert done.returncode == 2
        assert "usage" in done.stderr


class TestInstall:
    def test_every_chart_in_its_order_and_kuberays_crds_first(self, tmp_path):
        log = tmp_path / "log"
        program(tmp_path, "helm", f'echo helm "$1" "$2" "$3" "$4" >> "{log}"')
        program(tmp_path, "kubectl", f'cat > /dev/null; echo kubectl "$1" >> "{log}"')
        done = run(SCRIPTS / "install.sh", path=tmp_path)
        assert done.returncode == 0, done.stderr
        table = yaml.safe_load((CLUSTER / "helm" / "versions.yaml").read_text())["charts"]
        wanted = []
        for name in (each["name"] for each in table):
            upgrade = f"helm upgrade --install {name} {name}"
            crds = [f"helm show crds {name} --repo", "kubectl apply"]
            wanted += [*crds, upgrade] if name == "kuberay-operator" else [upgrade]
        assert sorted(log.read_text().splitlines()) == sorted(wanted)
        upgrades = [line for line in log.read_text().splitlines() if "upgrade" in line]
        assert upgrades == [line for line in wanted if "upgrade" in line]

    def test_a_python_without_yaml_is_told_what_it_lacks(self, tmp_path):
        program(tmp_path, "python3", "exit 1")
        done = run(SCRIPTS / "install.sh", path=tmp_path)
        assert done.returncode == 2
        assert ".venv/bin" in done.stderr


@needs_kubectl
class TestTheLastChange:
    """A repository of three commits: as it is, the config, both halves."""

    @pytest.fixture
    def history(self, copied):
        self.git(copied, "init", "--initial-branch=main")
        self.commit(copied, "as it is")
        return copied

    def git(self, folder: Path, *arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)

    def commit(self, folder: Path, message: str) -> None:
        self.git(folder, "add", "--all")
        self.git(folder, "commit", "--message", message)

    def change(self, folder: Path, *halves_changed: str) -> None:
        if "config" in halves_changed:
            file = folder / "configs" / "prod.yaml"
            file.write_text(file.read_text() + "# changed\n")
        if "cluster" in halves_changed:
            file = folder / "cluster" / "image" / "kustomization.yaml"
            file.write_text(file.read_text().replace("newTag: 0", "newTag: 1"))
        self.commit(folder, " and ".join(halves_changed))

    def test_one_half_passes_and_both_are_refused(self, history):
        self.change(history, "config")
        assert "running cluster" in halves.check_last_change("prod", history)
        self.change(history, "cluster", "config")
        with pytest.raises(ManifestError, match="two steps"):
            halves.check_last_change("prod", history)

    def test_a_branch_is_compared_with_where_it_left_main(self, history):
        self.git(history, "checkout", "-b", "branch")
        self.change(history, "cluster")
        self.change(history, "config")
        with pytest.raises(ManifestError, match="two steps"):
            halves.check_last_change("prod", history)

    def test_without_a_commit_before_it_is_a_skip(self, history):
        with pytest.raises(UncheckedError, match="no commit before HEAD"):
            halves.check_last_change("prod", history)

    def test_without_git_it_is_a_skip(self, tmp_path):
        with pytest.raises(UncheckedError, match="no git history"):
            halves.check_last_change("prod", tmp_path)
