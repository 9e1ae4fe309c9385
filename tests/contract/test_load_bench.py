"""The benches run; how fast this machine is, is not their test."""

import os
import re
import subprocess
import sys

import pytest

from loadtests.bench.pacer import ACHIEVED_SHARE, LAG_P99_MS
from loadtests.bench.sse import BUDGET_US


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.bench", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_sse_tells_cost_and_truth():
    done = bench("sse", "--streams", "4", "--rounds", "1", "--duration-s", "0.5", "--tokens", "8")
    head, row, verdict = done.stdout.splitlines()
    assert "CPU us/token" in head and "|TTFT - truth|" in head
    assert int(row.split()[0]) == 4
    assert float(row.split()[1]) > 1
    is_kept = float(row.split()[1]) <= BUDGET_US
    assert (verdict.split(":")[0], done.returncode) == (("PASS", 0) if is_kept else ("FAIL", 1))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for the mock engine")
def test_pacer_holds_the_rate_or_says_that_it_could_not():
    done = bench("pacer", "--rate", "50", "--tokens", "8", "--duration-s", "1")
    offered, lag, cpu, verdict, *_ = done.stdout.splitlines()
    assert offered.startswith("offered 50.0/s, achieved ")
    assert lag.startswith("lag P50 ") and cpu.startswith("CPU of the load process ")
    _, lag_p99_ms, _ = map(float, re.findall(r"([\d.]+|inf) ms", lag))
    achieved_per_s = float(re.search(r"achieved ([\d.]+)/s", offered)[1])
    is_held = lag_p99_ms <= LAG_P99_MS and achieved_per_s >= ACHIEVED_SHARE * 50
    assert done.returncode == (0 if is_held else 1)
    assert (verdict == "PASS") == is_held
    assert verdict.startswith("FAIL, one core could not hold it: ") != is_held


def test_an_unknown_bench_is_refused():
    done = bench("relay")
    assert done.returncode == 2
    assert "invalid choice" in done.stderr
