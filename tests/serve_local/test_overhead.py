"""`quantile bench overhead` on a Serve instance of its own: every way is measured, and told."""

import signal
import subprocess
import sys

import msgspec
import psutil
import pytest

from loadtests.relay_bench.budgets import Verdict
from loadtests.relay_bench.nouns import (
    DEPLOYED,
    DIRECT,
    HANDLES,
    HAPROXY,
    ROUTER,
    SILENT,
    TELLING,
)
from loadtests.relay_bench.report import Document
from tests.fakes.serve_client import wait_until

OVERHEAD = [sys.executable, "-m", "serve_app.cli", "bench", "overhead"]
pytestmark = [pytest.mark.serve, pytest.mark.timeout(160)]


def test_one_small_round_of_every_way(tmp_path):
    load = ["--rounds", "1", "--clients", "2", "--clients", "16", "--tokens", "16"]
    words = [*load, "--ttft-ms", "20", "--itl-ms", "5", "--tracing", "--parts"]
    command = [*OVERHEAD, *words, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode in (0, 1), done.stderr
    document = msgspec.json.decode((tmp_path / "overhead.json").read_bytes(), type=Document)
    assert done.returncode == any(each.verdict is Verdict.MISSED for each in document.findings)
    at = {(each.way, each.clients): each for each in document.figures}
    ways = (DIRECT, HAPROXY, ROUTER, DEPLOYED, HANDLES, *TELLING)
    assert at.keys() == {(way, clients) for way in ways for clients in (2, 16)}
    for way in ways:
        assert at[way, 16].streams_per_s.median > 20, way
        assert (at[way, 16].added_p50_ms is None) == (way == DIRECT)
    # The order of costs is not a matter of the machine's mood.
    cost = {way: at[way, 16].cpu_us_per_token for way in ways}
    assert cost[DIRECT] is None
    assert cost[ROUTER].median < cost[HANDLES].median
    assert at[DEPLOYED, 16].path_us_per_token.median > cost[DEPLOYED].median
    # That the spans arrived is a condition of its end. How much they cost is for longer runs.
    assert at[SILENT, 16].times_silent.median == 1.0
    for way in TELLING:
        assert 0.5 < at[way, 16].times_silent.median < 2.0
    parts = {each.way: each for each in document.parts}
    assert parts.keys() == {HAPROXY, ROUTER, DEPLOYED, HANDLES}
    for name in ("rest_us_per_s", "us_per_request", "usual_us_per_token"):
        assert getattr(parts[ROUTER], name) > getattr(parts[HAPROXY], name)
    # Solved for as a difference: in one round router and HAProxy may look alike, handles do not.
    assert parts[HANDLES].us_per_token > parts[ROUTER].us_per_token > 0
    assert parts[HANDLES].us_per_token > parts[HAPROXY].us_per_token > 0
    for said in ("at most 2.5", "at most 1.1", "what telling costs"):
        assert said in done.stdout


def test_a_run_that_is_ended_keeps_its_rounds_and_leaves_no_process(tmp_path):
    load = ["--rounds", "99", "--clients", "16", "--tokens", "4", "--ttft-ms", "5"]
    words = [*load, "--out", str(tmp_path)]
    command = [*OVERHEAD, *words]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)

        def has_a_round() -> bool:
            assert process.poll() is None, (tmp_path / "said").read_text()
            return "round 1 of 99" in (tmp_path / "said").read_text()

        wait_until(has_a_round, 60, "a round is done")
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    wait_until(lambda: not psutil.wait_procs(started, timeout=0)[1], 30, "all have ended")
    document = msgspec.json.decode((tmp_path / "overhead.json").read_bytes(), type=Document)
    assert document.broke_off == "SystemExit(143)"
    assert {each.way for each in document.samples} == {DIRECT, HAPROXY, ROUTER, DEPLOYED, HANDLES}
