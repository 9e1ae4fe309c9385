"""The alert rules by promtool: each fires when it should, and is silent when it should not."""

import re
import subprocess

import pytest
import yaml

from tests.fakes.prometheus import OBSERVABILITY, need

RULES = OBSERVABILITY / "alerts.yaml"
TESTS = sorted((OBSERVABILITY / "tests").glob("*.yaml"))


@pytest.fixture(autouse=True)
def promtool():
    need("promtool")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, cwd=OBSERVABILITY,
    )  # fmt: skip


def test_rules_and_scrape_configuration_are_valid():
    assert run("check", "rules", RULES).returncode == 0
    checked = run("check", "config", OBSERVABILITY / "prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path):
    done = run("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_expected_to_fire_somewhere():
    names = {
        rule["alert"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    expected = set(re.findall(r"Quantile[A-Z]\w+", "".join(path.read_text() for path in TESTS)))
    assert expected == names


@pytest.mark.parametrize(
    ("text", "broken", "test"),
    [
        (">= 9000", ">= 900", "capacity"),
        ("> max by (application, replica, variant, device)", "< max by (application, replica, "
         "variant, device)", "capacity"),
        ("> bool 0)", ">= bool 0)", "serving"),
        ("or 0 * count by (application, variant) (", "or count by (application, variant) (",
         "serving"),
        ('status=~"5.."', 'status=~"[45].."', "slo"),
        (">= 20", ">= 2", "variants"),
        (">= 50", ">= 5", "variants"),
        ('ray-head",endpoint="metrics"', 'ray-head"', "variants"),
    ],
)  # fmt: skip
def test_the_tests_notice_a_wrong_rule(tmp_path, text, broken, test):
    rules = RULES.read_text()
    assert text in rules
    (tmp_path / "alerts.yaml").write_text(rules.replace(text, broken))
    (tmp_path / "tests").mkdir()
    copy = tmp_path / "tests" / "test.yaml"
    copy.write_text((OBSERVABILITY / "tests" / f"{test}.yaml").read_text())
    assert run("test", "rules", copy).returncode != 0
