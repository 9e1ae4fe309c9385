"""Drills of a cluster in namespaces of this machine; skipped with the reason where it has none."""

import os
import shutil
from pathlib import Path

import pytest

from tests.cluster_drill.lab import lack_of_namespaces
from tests.cluster_drill.report import ROWS, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, whether or not output is captured."""
    if ROWS:
        terminalreporter.section("cluster drills")
        terminalreporter.write_line(table(ROWS))


@pytest.fixture(scope="session")
def lab() -> None:
    """Skips without root namespaces."""
    if (lack := lack_of_namespaces()) is not None:
        pytest.skip(lack)


@pytest.fixture(scope="session")
def redis(lab: None) -> None:
    """Skips without redis-server; in CI, which installs it, fails."""
    if shutil.which("redis-server") is None:
        reason = "need redis-server on PATH, have none: .ci/install-redis"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drill")
