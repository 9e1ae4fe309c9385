"""The benches run; how fast this machine is, is not their test."""

import os
import subprocess
import sys

import pytest


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.bench", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_sse_tells_cost_and_truth():
    done = bench("sse", "--streams", "4", "--rounds", "1", "--duration-s", "0.5", "--tokens", "8")
    head, row, verdict = done.stdout.splitlines()
    assert "CPU us/token" in head and "|TTFT - truth|" in head
    assert int(row.split()[0]) == 4
    assert float(row.split()[1]) > 1
    assert (verdict.split(":")[0], done.returncode) in {("PASS", 0), ("FAIL", 1)}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for the mock engine")
def test_pacer_holds_the_rate_or_says_that_it_could_not():
    done = bench("pacer", "--rate", "50", "--tokens", "8", "--duration-s", "1")
    offered, lag, cpu, verdict, *_ = done.stdout.splitlines()
    assert offered.startswith("offered 50.0/s, achieved ")
    assert lag.startswith("lag P50 ") and cpu.startswith("CPU of the load process ")
    if done.returncode == 0:
        assert verdict == "PASS"
    else:
        assert done.returncode == 1
        assert verdict.startswith("FAIL, one core could not hold it: ")


def test_an_unknown_bench_is_refused():
    done = bench("relay")
    assert done.returncode == 2
    assert "invalid choice" in done.stderr
