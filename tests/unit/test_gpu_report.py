"""What `make test-gpu` makes of its figures: the part that needs no engine."""

import json
import time

import pytest

from serve_app.domain.gpu import GpuProfile
from tests.gpu.load import Answer, summary
from tests.gpu.machine import Machine
from tests.gpu.run import Options, Report


def test_options_come_from_the_environment():
    environ = {"QUANTILE_GPU_TESTS_DEVICE": "host", "QUANTILE_GPU_TESTS_ROUNDS": "2"}
    assert Options.from_environment(environ) == Options(device="host", rounds=2)
    with pytest.raises(ValueError):
        Options.from_environment({"QUANTILE_GPU_TESTS_ROUNDS": "many"})


def test_percentiles_count_whole_answers_only():
    whole = Answer("a", 1.0, [1.010, 1.012, 1.016], 1.02)
    broken = Answer("b", 1.0, [9.0], 9.0, error="ReadError")
    figures = summary([whole, broken])
    assert (figures["requests"], figures["failed"]) == (2, 1)
    assert figures["ttft_p50_ms"] == figures["ttft_p99_ms"] == 10.0
    assert figures["gap_p50_ms"] == 3.0
    assert figures["request_p50_ms"] == 20.0


def test_no_answers_have_no_percentiles():
    figures = summary([])
    assert figures["requests"] == 0
    assert figures["ttft_p50_ms"] is None


FIGURES = {
    "planned_against_measured": {
        "variants": [
            {
                "variant": "awq",
                "planned_bytes": 2 << 30,
                "held_bytes": 1 << 30,
                "held_of_planned": 0.5,
                "weights": {"planned_bytes": 4 << 20, "measured_bytes": 3 << 20},
            }
        ]
    },
    "neighbour_killed": {
        "processes_gone_s": 0.1,
        "memory_returned_s": None,
        "back_s": 20.0,
        "neighbours": {"before": summary([])},
    },
    "started_together": {
        "engines": 3,
        "rounds": [
            {
                "all_ready_s": 12.0,
                "overlapping_turns": 0,
                "held_bytes": 1 << 30,
                "planned_bytes": 2 << 30,
            }
        ],
    },
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_written_and_shown(name, tmp_path, capsys):
    out = tmp_path / "reports" / "gpu.json"
    profile = GpuProfile("host", "host", 1 << 34, 0, (0, 0), 0.0)
    report = Report(Options(out=str(out)), Machine("host", None, profile, known=False))
    assert report.run(name, lambda: (dict(FIGURES[name]), ["too much"])) == ["too much"]
    written = json.loads(out.read_text())
    assert written[name]["wrong"] == ["too much"]
    assert written["options"]["rounds"] == 20
    assert name in capsys.readouterr().out


def test_the_budget_runs_out(tmp_path):
    profile = GpuProfile("host", "host", 1 << 34, 0, (0, 0), 0.0)
    machine = Machine("host", None, profile, known=False)
    report = Report(Options(budget_s=0.01, out=str(tmp_path / "x")), machine)
    time.sleep(0.02)
    assert report.left_s() < 0
