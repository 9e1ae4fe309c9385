"""However a run ends, what was measured is kept in whole lines, and nothing keeps running."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from loadtests.records.manifest import EndReason
from loadtests.records.record import RequestRecord
from serve_app.serving.ports import free_port
from tests.fakes.load_run import (
    SIGNALS_HEARD,
    LoadRun,
    is_running,
    load_processes,
    raw_campaign,
)

SLOW = {"ttft_ms": 400, "itl_ms": 100}  # always something in flight
END_S = 20.0


@pytest.fixture
def long_run(fake_server, tmp_path):
    """30 s of load, which no test waits for."""
    base_url = fake_server("m@a", **SLOW)
    return LoadRun.new(tmp_path / "run", raw_campaign(base_url, stage={"duration_s": 30.0}))


@pytest.fixture
def mortal_server():
    """A fake engine that the test may kill: its base URL and its process."""
    port = free_port()
    command = [sys.executable, "-m", "serve_app.engines.fake", "--port", str(port)]
    server = subprocess.Popen([*command, "--model", "m@a", "--script", json.dumps(SLOW)])
    yield f"http://127.0.0.1:{port}", server
    server.kill()
    server.wait()


def check_partial(run: LoadRun) -> None:
    """Every line is whole, no request is there twice, and the cell is not whole."""
    lines = run.files.records.read_bytes().splitlines(keepends=True)
    assert lines and all(line.endswith(b"\n") for line in lines)
    decoder = msgspec.json.Decoder(RequestRecord)
    records = [decoder.decode(line) for line in lines]
    assert len({(record.cell, record.index) for record in records}) == len(records)
    assert len(run.cells) == 1
    assert len(run.runs) == 0


def check_all_gone(pids: list[int]) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s and any(map(is_running, pids)):
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1)],
)
def test_a_signal_ends_the_run_and_keeps_what_is_in_flight(long_run, number, processes):
    with long_run.started("--processes", str(processes), **SIGNALS_HEARD) as process:
        long_run.wait_for_records()
        workers = load_processes(process.pid)
        assert len(workers) == (processes if processes > 1 else 0)
        os.kill(process.pid, number)
        assert process.wait(END_S) == 3
    assert long_run.ending.reason is EndReason.INTERRUPTED
    assert long_run.ending.detail == number.name
    check_partial(long_run)
    unfinished = [r for r in long_run.records if r.error == "unfinished"]
    assert 4 <= len(unfinished) <= 40  # 20 a second, 0.8 s each
    assert all(r.t_send_ns is not None and r.t_end_ns > r.t_send_ns for r in unfinished)
    # none is missing: what was due was sent, and what was sent has its record
    assert sorted(r.index for r in long_run.records) == list(range(len(long_run.records)))
    check_all_gone(workers)


def test_ctrl_c_while_workers_are_awaited_ends_the_run(long_run):
    words = ("--processes", "0", "--remote-workers", "1", "--listen", f"127.0.0.1:{free_port()}")
    with long_run.started(*words, **SIGNALS_HEARD) as process:
        time.sleep(2.0)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(END_S) == 3
    assert long_run.ending.reason is EndReason.INTERRUPTED
    assert long_run.records == []


def test_a_killed_worker_ends_the_run_and_is_named(long_run):
    with long_run.started("--processes", "2") as process:
        long_run.wait_for_records()
        workers = load_processes(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(END_S) == 3
    assert long_run.ending.reason is EndReason.WORKER_LOST
    assert f"process {workers[0]} on" in long_run.ending.detail
    assert "killed by signal 9" in long_run.ending.detail
    check_partial(long_run)
    assert {r.worker for r in long_run.records if r.error == "unfinished"} < {0, 1}
    check_all_gone(workers)


def test_a_frozen_worker_is_lost_when_its_heartbeat_is_missing(long_run):
    with long_run.started("--processes", "2") as process:
        long_run.wait_for_records()
        workers = load_processes(process.pid)
        os.kill(workers[1], signal.SIGSTOP)
        assert process.wait(END_S) == 3
    assert long_run.ending.reason is EndReason.WORKER_LOST
    assert "heartbeat is missing" in long_run.ending.detail
    assert f"process {workers[1]} on" in long_run.ending.detail
    check_partial(long_run)
    check_all_gone(workers)


def test_a_worker_elsewhere_that_is_told_to_end_is_lost_at_once(long_run):
    master = f"127.0.0.1:{free_port()}"
    worker = subprocess.Popen([sys.executable, "-m", "loadtests.drive.worker", "--master", master])
    words = ("--processes", "1", "--remote-workers", "1", "--listen", master)
    try:
        with long_run.started(*words) as process:
            long_run.wait_for_records()
            worker.send_signal(signal.SIGTERM)
            started_s = time.monotonic()
            assert process.wait(END_S) == 3
        assert time.monotonic() - started_s < 8
        assert worker.wait(5) == 3
    finally:
        worker.kill()
        worker.wait()
    assert long_run.ending.reason is EndReason.WORKER_LOST
    assert f"(process {worker.pid} on" in long_run.ending.detail


def test_a_worker_that_cannot_start_ends_the_run(long_run, tmp_path):
    code = "import os, sys\nif '--master' in sys.orig_argv: os._exit(7)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    with long_run.started(
        "--processes", "2", env=os.environ | {"PYTHONPATH": str(tmp_path)}
    ) as process:
        assert process.wait(END_S) == 3
    assert long_run.ending.reason is EndReason.WORKER_LOST
    assert "ended with status 7" in long_run.ending.detail
    assert long_run.records == []


def test_a_killed_master_leaves_no_process(long_run):
    with long_run.started("--processes", "2") as process:
        long_run.wait_for_records()
        workers = load_processes(process.pid)
        assert len(workers) == 2
        process.kill()
        process.wait()
    check_all_gone(workers)
    assert long_run.ending is None
    assert long_run.records


def test_a_worker_elsewhere_leaves_when_its_master_is_gone(long_run):
    master = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "loadtests.drive.worker", "--master", master]
    worker = subprocess.Popen([*command, "--silence-s", "3"], stderr=subprocess.PIPE, text=True)
    words = ("--processes", "0", "--remote-workers", "1", "--listen", master)
    try:
        with long_run.started(*words) as process:
            long_run.wait_for_records()
            process.kill()
            process.wait()
        _, said = worker.communicate(timeout=15)
        assert worker.returncode == 1
    finally:
        worker.kill()
        worker.wait()
    assert "no word from the master for 3 s" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_load_ends_with_the_process_that_started_it(long_run, number):
    """As the `quantile` process would be, were it ended or killed."""
    starter = (
        "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).wait()"
    )
    command = [sys.executable, "-c", starter, *long_run.command("--processes", "2")]
    parent = subprocess.Popen(command)
    try:
        long_run.wait_for_records()
        (master,) = load_processes(parent.pid)
        workers = load_processes(master)
    finally:
        parent.send_signal(number)
        parent.wait()
    check_all_gone([master, *workers])
    assert long_run.ending.reason is EndReason.INTERRUPTED
    check_partial(long_run)


def test_a_server_that_is_gone_ends_the_run(tmp_path, mortal_server):
    base_url, server = mortal_server
    raw = raw_campaign(base_url, stage={"duration_s": 30.0}, give_up_after=60)
    run = LoadRun.new(tmp_path / "run", raw)
    with run.started("--processes", "2") as process:
        run.wait_for(lambda: any(r.error is None for r in run.records), "an answer")
        server.kill()
        server.wait()
        assert process.wait(END_S) == 3
    assert run.ending.reason is EndReason.SERVER_GONE
    assert base_url in run.ending.detail
    errors = run.errors()
    assert 60 <= errors["connect"] + errors.get("closed", 0) <= 200
    assert any(r.error is None for r in run.records)
    check_partial(run)


def test_users_of_a_closed_loop_do_not_storm_a_server_that_is_gone(tmp_path):
    stage = {"name": "s", "kind": "concurrency", "concurrency": 4, "duration_s": 30.0}
    base_url = f"http://127.0.0.1:{free_port()}"
    run = LoadRun.new(tmp_path / "run", raw_campaign(base_url) | {"stages": [stage]})
    run.play()
    assert run.ending.reason is EndReason.SERVER_GONE
    assert 50 <= len(run.records) <= 250


def test_a_full_disk_ends_the_run_and_lets_the_workers_go(long_run):
    def fill_up() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # for each file, the log as well

    master = f"127.0.0.1:{free_port()}"
    worker = subprocess.Popen([sys.executable, "-m", "loadtests.drive.worker", "--master", master])
    words = ("--processes", "1", "--remote-workers", "1", "--listen", master)
    try:
        with long_run.started(*words, preexec_fn=fill_up) as process:
            assert process.wait(END_S) == 1
        assert worker.wait(5) == 0  # it was told to leave
    finally:
        worker.kill()
        worker.wait()
    assert long_run.ending.reason is EndReason.FAILED
    assert "File too large" in long_run.ending.detail
    assert long_run.files.records.stat().st_size == 2000
    assert 4 <= len(long_run.records) <= 10  # the whole lines


def test_an_error_of_ours_fails_the_run_with_its_text(long_run):
    long_run.files.records.mkdir()  # it cannot be written to
    long_run.play()
    assert long_run.ending.reason is EndReason.FAILED
    assert "records.jsonl" in long_run.ending.detail
