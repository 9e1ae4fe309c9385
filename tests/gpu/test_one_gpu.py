"""Packing on one GPU, with real engines: the plan holds, the gate holds, neighbours hold."""

import pytest

from tests.gpu.engines import open_stage
from tests.gpu.formats import formats_without_cpu_kernel, require_made
from tests.gpu.machine import find_machine
from tests.gpu.run import Report
from tests.gpu.scenarios import neighbour_killed, planned_against_measured, started_together

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machine(options):
    found = find_machine(options.device)
    require_made(found)
    return found


@pytest.fixture(scope="module")
def report(options, machine):
    return Report(options, machine)


@pytest.fixture(scope="module")
def stage(machine, tmp_path_factory):
    with open_stage(machine, tmp_path_factory.mktemp("stage")) as opened:
        yield opened


def test_no_engine_holds_more_than_planned(machine, report):
    wrong = report.run("planned_against_measured", lambda: planned_against_measured(machine))
    assert not wrong


def test_formats_that_cpus_do_not_run_pass_their_gate_here(machine, report):
    wrong = report.run("formats_without_cpu_kernel", lambda: formats_without_cpu_kernel(machine))
    assert not wrong


def test_neighbours_serve_on_while_one_is_killed_and_comes_back(stage, report, options):
    wrong = report.run(
        "neighbour_killed", lambda: neighbour_killed(stage, options.engines, options.phase_s)
    )
    assert not wrong


def test_engines_that_start_together_start_in_turn(stage, report, options):
    wrong = report.run(
        "started_together",
        lambda: started_together(stage, options.engines, options.rounds, report.left_s()),
    )
    assert not wrong
