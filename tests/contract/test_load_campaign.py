"""A campaign from the question which variants there are to its report, by way of `quantile`."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from loadtests.analyse.nouns import Verdict
from loadtests.campaign import parse_campaign
from loadtests.records.manifest import EndReason
from loadtests.run import LoadOptions, run_campaign
from serve_app.domain.errors import ConfigError, UnknownModelError
from tests.fakes.load_run import SIGINT_HEARD, LoadRun, load_processes, raw_campaign

QUANTILE = [sys.executable, "-m", "serve_app.cli"]


def campaign_of(base_url: str, **changes: object):
    target = {"base_url": base_url, "model": "m", "variants": "all"}
    return parse_campaign(raw_campaign(base_url, **{"target": target} | changes), "test")


def test_all_variants_are_measured_by_two_processes(fake_server, tmp_path):
    base_url = fake_server("m@a", "m@b", "m", ttft_ms=10, itl_ms=2)
    result = run_campaign(campaign_of(base_url), tmp_path, options=LoadOptions(processes=2))
    assert {row.variant for row in result.summaries} == {"a", "b"}
    for row in result.summaries:
        assert (row.n_planned, row.n_ok, row.errors) == (20, 20, {})


def test_what_cannot_be_run_is_said_before_anything_is_written(fake_server, tmp_path):
    base_url = fake_server("m@a")
    campaign = campaign_of(base_url, stage={"duration_s": 0.2})
    run_campaign(campaign, tmp_path / "ok")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_campaign(campaign, tmp_path / "ok")
    with pytest.raises(UnknownModelError, match="its variants of 'm': a"):
        run_campaign(campaign.with_target(variants=["b"]), tmp_path / "unknown")
    with pytest.raises(ConfigError, match="Is the server up"):
        run_campaign(campaign.with_target(base_url="http://127.0.0.1:9"), tmp_path / "down")
    assert not (tmp_path / "down").exists()


def test_a_load_process_that_dies_is_said_with_its_last_words(fake_server, tmp_path, monkeypatch):
    base_url = fake_server("m@a")
    package = tmp_path / "path" / "locust"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no locust here')\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    out = tmp_path / "run"
    result = run_campaign(campaign_of(base_url), out)
    ending = LoadRun.at(out).ending
    assert ending.reason is EndReason.FAILED
    assert "no locust here" in ending.detail
    assert result.verdict in (Verdict.INVALID, Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_leaves_a_partial_report_and_nothing_running(fake_server, tmp_path, processes):
    base_url = fake_server("m@a", "m@b", ttft_ms=20, itl_ms=1)
    file, out = tmp_path / "campaign.yaml", tmp_path / "run"
    target = {"base_url": base_url, "model": "m"}
    file.write_text(yaml.safe_dump(raw_campaign(base_url, target=target, blocks=20)))
    run = LoadRun.at(out)
    process = subprocess.Popen(
        [*QUANTILE, "loadtest", str(file), "--out", str(out), "--processes", processes],
        stdout=subprocess.PIPE,
        start_new_session=True,
        **SIGINT_HEARD,
    )
    try:
        run.wait_for(lambda: len(run.cells) > 1, "the second cell")
        (master,) = load_processes(process.pid)
        children = [master, *load_processes(master)]
        assert len(children) == {"1": 1, "2": 3}[processes]
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 3
    assert b"PARTIAL" in printed.upper()
    assert run.ending.reason is EndReason.INTERRUPTED
    assert (out / "report.md").exists()
    assert (out / "report.html").exists()
    run.wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), "the end")
