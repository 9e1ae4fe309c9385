"""Manifests of cluster/jobs against Kubernetes' own schemas, and their commands against ours."""

from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml
from typer.main import get_command

from serve_app.domain.errors import QuantileError
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.cli import gate, quantize

JOBS = sorted(Path("cluster/jobs").glob("*.yaml"))
KUBERNETES = "1.31"
"""The oldest that EKS still supports and the manifests are written for."""


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_manifest_is_what_kubernetes_takes(path):
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), KUBERNETES, strict=True)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_unknown_field_would_be_seen(path):
    manifest = yaml.safe_load(path.read_text())
    manifest["spec"]["restartpolicy"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_quantization_job_runs_a_command_that_exists():
    [container] = yaml.safe_load(Path("cluster/jobs/quantize.yaml").read_text())["spec"][
        "template"
    ]["spec"]["containers"]
    program, command, *arguments = container["command"]
    assert (program, command) == ("quantile", "quantize")
    app = typer.Typer()
    app.command()(quantize)
    parsed = get_command(app).make_context("quantize", list(arguments)).params
    assert recipe(parsed["name"]).needs_calibration
    assert parsed["out"].name.endswith(parsed["name"])


def test_the_gate_job_judges_what_it_fetches_and_puts_the_verdict_beside_it():
    pod = yaml.safe_load(Path("cluster/jobs/gate.yaml").read_text())["spec"]["template"]["spec"]
    steps = [each["command"] for each in [*pod["initContainers"], *pod["containers"]]]
    (*pull, name, folder), judge, (*push, pushed, place) = steps
    assert (pull, judge[:2], push) == (
        ["quantile", "store", "pull"], ["quantile", "gate"], ["quantile", "store", "push"],
    )  # fmt: skip
    assert name.rpartition("@")[0] == place
    app = typer.Typer()
    app.command()(gate)
    parsed = get_command(app).make_context("gate", judge[2:]).params
    assert str(parsed["folder"]) == folder == pushed


@pytest.mark.parametrize("job", ["quantize", "gate"])
def test_only_the_callers_mistakes_are_not_retried(job):
    """podFailurePolicy names exit codes: they are those of the errors' tree."""
    manifest = yaml.safe_load(Path(f"cluster/jobs/{job}.yaml").read_text())
    [rule, _] = manifest["spec"]["podFailurePolicy"]["rules"]
    codes = set(rule["onExitCodes"]["values"])
    assert codes == {2}
    assert QuantileError.exit_code not in codes
