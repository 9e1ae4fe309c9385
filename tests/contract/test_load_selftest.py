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


def test_times_are_those_of_the_engine(fake_server, tmp_path):
    base_url = fake_server("m@a", "m@b", "m", ttft_ms=50, itl_ms=10)
    result, records = run(
        tmp_path,
        base_url,
        workload={"prompts": {"kind": "corpus"}, "max_tokens": [40, 40]},
        stage={"rate_per_s": 10, "duration_s": 1.5},
        warmup_s=0.5,
        slo={"ttft_ms": 500},
    )
    assert {row.variant for row in result.summaries} == {"a", "b"}
    for row in result.summaries:
        assert (row.n_planned, row.n_ok, row.errors) == (15, 15, {})
        assert row.latencies["ttft_service_ms"].at(0.5).value == pytest.approx(52, abs=6)
        assert row.latencies["tpot_ms"].at(0.5).value == pytest.approx(10, abs=0.5)
        assert row.latencies["e2e_service_ms"].at(0.5).value == pytest.approx(442, abs=12)
        assert row.little_gap < 0.03
        assert row.attainment == 1.0
    gaps = [b - a for r in records for a, b in zip(r.event_us, r.event_us[1:], strict=False)]
    assert len(gaps) == 39 * len(records)
    zero_share = sum(gap < 200 for gap in gaps) / len(gaps)
    assert zero_share < 0.05  # 76 % with Locust's own iter_lines
    assert all(record.output_tokens == 40 for record in records)
    assert (tmp_path / "run" / "latency.png").stat().st_size > 10_000
    assert "TPOT" in (tmp_path / "run" / "report.md").read_text()
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["summaries"][0]["latencies"]["ttft_user_ms"]["quantiles"][2]["value"] is None
    assert write_report(tmp_path / "run").summaries == result.summaries


def test_a_freeze_shows_in_the_tail(fake_server, tmp_path):
    """1 s of 3 s frozen at 20/s: the k-th worst request waits 1 s less (k - 1) * 50 ms."""
    freeze = {"kind": "Freeze", "start_s": 1.0, "duration_s": 1.0}
    base_url = fake_server("m@a", ttft_ms=20, itl_ms=5, faults=[freeze])
    result, records = run(tmp_path, base_url, stage={"duration_s": 3.0})
    assert len(records) == 60
    p95_ms = result.summaries[0].latencies["ttft_user_ms"].at(0.95).value
    assert p95_ms == pytest.approx(1020 - 3 * 50, abs=60)  # a closed loop of 2 users says 25 ms
    p50_ms = result.summaries[0].latencies["ttft_user_ms"].at(0.5).value
    assert p50_ms < 100


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
