"""Opt-in: `make test-gpu`, or QUANTILE_GPU_TESTS_DEVICE=gpu|host and pytest on this folder.

Nothing here is collected without that variable: the tests need a GPU alone, for minutes. `host`
runs the same scenarios with CPU engines in the machine's memory.
"""

import os

import pytest

from tests.gpu.machine import DEVICE_VARIABLE
from tests.gpu.run import Options

if not os.environ.get(DEVICE_VARIABLE):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def options() -> Options:
    return Options.from_environment(os.environ)
