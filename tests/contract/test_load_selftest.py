"""The load tool against an engine whose times are known by construction, over real sockets.

Tolerances are those of a loaded two-core machine: what is tested is that nothing is measured
by the wrong definition (a wrong TTFT is off by a gap or more, hidden freezes by hundreds of ms).
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from loadtests.campaign import parse_campaign
from loadtests.records.record import read_records
from loadtests.report.result import read_result, write_report
from loadtests.run import run_campaign
from serve_app.domain.errors import ConfigError, InvalidRunError, UnknownModelError


def raw_campaign(base_url: str, **changes: object) -> dict:
    stage = {"name": "s", "kind": "constant", "rate_per_s": 20, "duration_s": 2.5}
    return {
        "target": {"base_url": base_url, "model": "m"},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [5, 5]},
        "stages": [stage | changes.pop("stage", {})],
        **changes,
    }


def run(tmp_path, base_url: str, **changes: object):
    campaign = parse_campaign(raw_campaign(base_url, **changes), "test")
    result = run_campaign(campaign, tmp_path / "run")
    return result, list(read_records(tmp_path / "run" / "records.jsonl"))


def test_broken_streams_and_refusals_are_failures_of_their_class(fake_server, tmp_path):
    faults = [
        {"kind": "FailFirst", "n": 2, "status": 503},
        {"kind": "DieMidStream", "after_tokens": 2, "every": 2},
        {"kind": "SlowBody", "piece_bytes": 50, "delay_ms": 0},
    ]
    base_url = fake_server("m@a", ttft_ms=5, itl_ms=1, faults=faults)
    result, _ = run(tmp_path, base_url, stage={"duration_s": 1.0})
    row = result.summaries[0]
    assert row.errors == {"unavailable": 2, "truncated": 9}
    aware = {q.p: q.value for q in row.latencies["e2e_user_ms"].with_failures}
    assert aware[0.95] == float("inf")
    assert row.latencies["e2e_user_ms"].at(0.5).value < 100
    assert row.is_valid or all("lag" in reason for reason in row.invalid_reasons)


def test_the_cap_and_the_timeout_are_failures_and_the_cap_invalidates(fake_server, tmp_path):
    base_url = fake_server("m@a", faults=[{"kind": "HangBeforeFirstByte"}])
    result, records = run(
        tmp_path, base_url, stage={"duration_s": 1.0}, in_flight_cap=4, timeout_s=0.5
    )
    errors = result.summaries[0].errors
    assert errors["timeout"] + errors["refused_by_client"] == 20 == len(records)
    assert 8 <= errors["timeout"] <= 12
    assert result.summaries[0].peak_in_flight == 4
    assert any("in_flight_cap 4" in reason for reason in result.summaries[0].invalid_reasons)
    assert not result.is_valid


def test_an_engine_that_goes_away_is_a_connection_error(fake_server, tmp_path):
    base_url = fake_server("m@a")
    campaign = parse_campaign(raw_campaign(base_url, stage={"duration_s": 0.2}), "test")
    run_campaign(campaign, tmp_path / "ok")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_campaign(campaign, tmp_path / "ok")
    with pytest.raises(UnknownModelError, match="its variants of 'm': a"):
        run_campaign(campaign.with_target(variants=["b"]), tmp_path / "unknown")
    with pytest.raises(ConfigError, match="Is the server up"):
        run_campaign(campaign.with_target(base_url="http://127.0.0.1:9"), tmp_path / "down")
    assert not (tmp_path / "down").exists()


def test_a_load_process_that_fails_is_an_invalid_run(fake_server, tmp_path, monkeypatch):
    base_url = fake_server("m@a")
    campaign = parse_campaign(raw_campaign(base_url), "test")
    monkeypatch.setenv("PYTHONPATH", str(_poisoned_locust(tmp_path)))
    with pytest.raises(InvalidRunError, match="no locust here"):
        run_campaign(campaign, tmp_path / "run")


def test_ctrl_c_leaves_a_partial_run_that_can_be_reported(fake_server, tmp_path):
    base_url = fake_server("m@a", "m@b", ttft_ms=20, itl_ms=1)
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(raw_campaign(base_url, blocks=20, stage={"duration_s": 1.0})))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "loadtests.cli", "run", str(file), "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and not (out / "cells.jsonl").exists():
        time.sleep(0.05)
    while time.monotonic() < deadline_s and not (out / "cells.jsonl").read_bytes():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"PARTIAL" in printed
    result = read_result(out)
    assert 1 <= result.n_cells_done < result.n_cells == 40
    assert result.is_partial and not result.is_valid
    assert result.summaries[0].n_planned == result.summaries[0].n_ok
    assert (out / "report.md").exists()


def _poisoned_locust(tmp_path):
    package = tmp_path / "path" / "locust"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no locust here')\n")
    return package.parent
