"""The load process against a fake engine: what it sends, what it keeps, with one worker and two."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtests.records.manifest import EndReason
from serve_app.serving.ports import free_port
from tests.fakes.background import InBackground
from tests.fakes.load_run import LoadRun, progress_lines, raw_campaign


@pytest.mark.parametrize("processes", ["1", "2"])
def test_workers_together_send_every_request_once_and_start_together(
    fake_server, tmp_path, processes
):
    base_url = fake_server("m@a", "m@b", ttft_ms=10, itl_ms=2)
    target = {"base_url": base_url, "model": "m", "variants": ["a", "b"]}
    raw = raw_campaign(base_url, target=target, warmup_s=0.2, cooldown_s=0.1)
    run = LoadRun.new(tmp_path / "run", raw)
    with run.started("--processes", processes, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert run.ending.reason is EndReason.COMPLETE
    sent = [(record.cell, record.index) for record in run.records]
    assert sorted(sent) == [(cell, index) for cell in (0, 1) for index in range(26)]
    assert run.errors() == {}
    n_workers = int(processes)
    assert all(record.index % n_workers == record.worker for record in run.records)
    assert {record.variant for record in run.records if record.cell == 0} == {run.cells[0].variant}
    shards = {(each.cell, each.worker): each.n_records for each in run.runs}
    assert shards == {(cell, w): 26 // n_workers for cell in (0, 1) for w in range(n_workers)}
    # every worker's stamps count from the same instant: none is off by the start of the other
    for record in run.records:
        assert 0 <= record.t_send_ns - record.t_sched_ns < 100e6
        assert record.t_send_ns < record.t_first_ns <= record.t_last_ns <= record.t_end_ns
    assert [each.clock_error_ns == 0 for each in run.runs] == [n_workers == 1] * 2 * n_workers
    assert max(each.clock_error_ns for each in run.runs) < 20e6
    for cell, after in zip(run.cells, run.cells[1:], strict=False):
        assert after.start_ns >= cell.start_ns + cell.end_ns
    lines = progress_lines(output)
    assert len(lines) > 5
    assert lines[-1].n_cells == 2 and lines[-1].n_workers == n_workers
    assert {line.phase for line in lines} >= {"running"}
    assert max(line.over for line in lines) > 26


def test_users_of_a_closed_loop_ask_again_and_share_the_work(fake_server, tmp_path):
    base_url = fake_server("m@a", ttft_ms=30, itl_ms=5)
    stage = {"name": "s", "kind": "concurrency", "concurrency": 3, "duration_s": 0.6}
    raw = raw_campaign(base_url, warmup_s=0.2, cooldown_s=0.1) | {"stages": [stage]}
    run = LoadRun.new(tmp_path / "run", raw).play("--processes", "2")
    assert run.ending.reason is EndReason.COMPLETE
    records = run.records
    assert (
        len({record.index for record in records})
        == len(records)
        == sum(each.n_records for each in run.runs)
    )
    assert 20 <= len(records) <= 3 * 0.9 / 0.05 + 3  # 50 ms each
    assert {each.worker: each.peak_in_flight for each in run.runs} == {0: 2, 1: 1}
    window_ns = run.cells[0].window_ns
    for record in records:
        assert record.t_sched_ns == record.t_send_ns
        is_measured = window_ns[0] <= record.t_sched_ns < window_ns[1]
        # the phase is decided just before the stamp
        near = min(abs(record.t_sched_ns - edge) for edge in window_ns) < 2e6
        assert near or is_measured == (record.phase == "measured")
    assert {record.phase for record in records} == {"warmup", "measured", "cooldown"}


class _Listener(BaseHTTPRequestHandler):
    """Answers 404 and keeps what it was asked."""

    seen: list[dict]

    def do_POST(self) -> None:
        now = {"t_ns": time.monotonic_ns()}
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append(
            {"body": body} | now | {name.lower(): it for name, it in self.headers.items()}
        )
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


def test_a_request_carries_its_session_its_key_and_its_pin(tmp_path):
    seen = _Listener.seen = []
    with InBackground(ThreadingHTTPServer(("127.0.0.1", 0), _Listener)) as server:
        base_url = server.url
        sessions = {"turns": [2, 2], "think_s": [0.0, 0.0]}
        target = {"base_url": base_url, "model": "m", "variants": ["a"], "api_key_env": "TEST_KEY"}
        workload = raw_campaign("http://x")["workload"] | {"sessions": sessions}
        raw = raw_campaign(base_url, target=target, workload=workload, stage={"duration_s": 0.5})
        run = LoadRun.new(tmp_path / "run", raw)
        with run.started("--processes", "2", env=os.environ | {"TEST_KEY": "secret"}) as process:
            process.wait(60)
    by_session = {record.session for record in run.records}
    assert len(run.records) == 10 and len(by_session) == 5
    assert {request["x-session-id"] for request in seen} == by_session
    assert {request["authorization"] for request in seen} == {"Bearer secret"}
    assert all(request["body"]["model"] == "m@a" for request in seen)
    assert all(request["body"]["min_tokens"] == 5 for request in seen)


def test_all_workers_start_at_the_instant_that_was_written_down(tmp_path):
    """By the server's clock, which is the machine's, as the run's epoch is."""
    seen = _Listener.seen = []
    with InBackground(ThreadingHTTPServer(("127.0.0.1", 0), _Listener)) as server:
        raw = raw_campaign(server.url, stage={"rate_per_s": 5, "duration_s": 1.6})
        run = LoadRun.new(tmp_path / "run", raw).play("--processes", "2")
    start_ns = run.epoch_ns + run.cells[0].start_ns
    came_ms = sorted((request["t_ns"] - start_ns) / 1e6 for request in seen)
    assert came_ms == pytest.approx([200 * i for i in range(8)], abs=90)


def test_a_missing_key_fails_the_run_with_its_name(tmp_path):
    target = {"base_url": "http://127.0.0.1:9", "model": "m", "variants": ["a"]}
    raw = raw_campaign("", target=target | {"api_key_env": "NO_SUCH_KEY"})
    run = LoadRun.new(tmp_path / "run", raw).play()
    assert run.ending.reason is EndReason.FAILED
    assert "set NO_SUCH_KEY" in run.ending.detail
    assert run.records == []


def test_the_cap_is_for_all_workers_and_refusals_are_failures(fake_server, tmp_path):
    base_url = fake_server("m@a", faults=[{"kind": "HangBeforeFirstByte"}])
    raw = raw_campaign(base_url, in_flight_cap=4, timeout_s=0.5, give_up_after=5)
    run = LoadRun.new(tmp_path / "run", raw).play("--processes", "2")
    assert run.ending.reason is EndReason.COMPLETE  # a server that does not answer is not gone
    errors = run.errors()
    assert errors["timeout"] + errors["refused_by_client"] == 20 == len(run.records)
    assert 8 <= errors["timeout"] <= 12
    assert [each.peak_in_flight for each in run.runs] == [2, 2]
    refused = [record for record in run.records if record.error == "refused_by_client"]
    assert all(record.t_send_ns is None for record in refused)


def test_a_cap_that_leaves_a_worker_without_requests_is_refused(tmp_path):
    raw = raw_campaign("http://127.0.0.1:9", in_flight_cap=1)
    run = LoadRun.new(tmp_path / "run", raw).play("--processes", "2")
    assert run.ending.reason is EndReason.FAILED
    assert "in_flight_cap of one or more per load process, have 1 for 2" in run.ending.detail


def test_ports_that_are_taken_are_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option, value in (("--listen", f"127.0.0.1:{port}"), ("--web-port", str(port))):
            run = LoadRun.new(tmp_path / option, raw_campaign("http://127.0.0.1:9"))
            remote = ("--remote-workers", "1") if option == "--listen" else ()
            run.play("--processes", "1", *remote, option, value)
            assert run.ending.reason is EndReason.FAILED
            assert f"{option} {value}" in run.ending.detail


@pytest.mark.parametrize(
    "words",
    [
        ("--remote-workers", "1"),
        ("--processes", "2", "--remote-workers", "1"),
        ("--listen", "127.0.0.1:0"),
        ("--processes", "2", "--listen", "127.0.0.1:0"),
    ],
)
def test_workers_elsewhere_need_an_address_and_an_address_needs_workers(tmp_path, words):
    run = LoadRun.new(tmp_path / "run", raw_campaign("http://127.0.0.1:9")).play(*words)
    assert run.ending.reason is EndReason.FAILED
    assert "need --remote-workers and --listen together or neither" in run.ending.detail


def test_workers_that_do_not_come_end_the_run_with_what_is_missing(tmp_path):
    run = LoadRun.new(tmp_path / "run", raw_campaign("http://127.0.0.1:9"))
    master = f"127.0.0.1:{free_port()}"
    words = ("--processes", "1", "--remote-workers", "2", "--listen", master, "--gather-s", "6")
    with run.started(*words) as process:
        assert process.wait(30) == 1
    assert run.ending.reason is EndReason.FAILED
    assert run.ending.detail == (
        f"need 3 workers, have 1 after 6 s: start `quantile load-worker --master {master}`"
    )


def test_broken_streams_and_refusals_are_failures_of_their_class(fake_server, tmp_path):
    faults = [
        {"kind": "FailFirst", "n": 2, "status": 503},
        {"kind": "DieMidStream", "after_tokens": 2, "every": 2},
        {"kind": "SlowBody", "piece_bytes": 50, "delay_ms": 0},
    ]
    base_url = fake_server("m@a", ttft_ms=5, itl_ms=1, faults=faults)
    run = LoadRun.new(tmp_path / "run", raw_campaign(base_url)).play()
    assert run.errors() == {"unavailable": 2, "truncated": 9}
    assert run.runs[0].n_records == 20


def test_a_search_decides_from_the_records_of_its_cells(fake_server, tmp_path):
    base_url = fake_server("m@a", ttft_ms=10, itl_ms=1, max_num_seqs=1)
    search = {
        "kind": "constant",
        "duration_s": 1.0,
        "low_per_s": 10,
        "high_per_s": 200,
        "max_probes": 3,
        "max_repeats": 1,
    }
    slo = {"ttft_ms": 120, "attainment": 0.9}
    raw = raw_campaign(base_url, slo=slo, give_up_after=1000) | {"stages": [], "search": search}
    run = LoadRun.new(tmp_path / "run", raw).play()
    assert run.ending.reason is EndReason.COMPLETE
    rates = [cell.rate_per_s for cell in run.cells]
    assert 2 <= len(rates) <= 4
    assert len(set(rates)) == len(rates)
    assert {each.cell for each in run.runs} == set(range(len(rates)))
    assert [cell.index for cell in run.cells] == list(range(len(rates)))


def test_workers_of_other_machines_join_and_one_too_many_is_sent_away(fake_server, tmp_path):
    base_url = fake_server("m@a", ttft_ms=5, itl_ms=1)
    master = f"127.0.0.1:{free_port()}"
    worker = [sys.executable, "-m", "loadtests.drive.worker", "--master", master]
    run = LoadRun.new(tmp_path / "run", raw_campaign(base_url, stage={"duration_s": 1.5}))
    words = ("--processes", "0", "--remote-workers", "2", "--listen", master)
    workers = [subprocess.Popen(worker) for _ in range(2)]  # before there is a master
    try:
        with run.started(*words) as process:
            run.wait_for_records()
            late = subprocess.run(worker, timeout=30)
            process.wait(30)
        assert [each.wait(10) for each in workers] == [0, 0]
    finally:
        for each in workers:
            each.kill()
            each.wait()
    assert late.returncode == 0
    assert run.ending.reason is EndReason.COMPLETE
    assert sorted(record.index for record in run.records) == list(range(30))
    assert {record.worker for record in run.records} == {0, 1}


def test_workers_too_many_before_the_start_are_sent_away_and_take_no_load(fake_server, tmp_path):
    """To Locust they are workers like the others, and it may well give them the users."""
    base_url = fake_server("m@a", ttft_ms=5, itl_ms=1)
    master = f"127.0.0.1:{free_port()}"
    worker = [sys.executable, "-m", "loadtests.drive.worker", "--master", master]
    run = LoadRun.new(tmp_path / "run", raw_campaign(base_url))
    workers = [subprocess.Popen(worker) for _ in range(4)]
    try:
        with run.started(
            "--processes", "0", "--remote-workers", "1", "--listen", master
        ) as process:
            assert process.wait(30) == 0
        assert [each.wait(10) for each in workers] == [0, 0, 0, 0]
    finally:
        for each in workers:
            each.kill()
            each.wait()
    assert run.ending.reason is EndReason.COMPLETE
    assert sorted(record.index for record in run.records) == list(range(20))
    assert {record.worker for record in run.records} == {0}


def test_a_player_obeys_without_a_locust_user():
    """Which of its workers get one is Locust's to say. In a process of its own: Locust patches."""
    code = """
import gevent, msgspec
from locust.env import Environment
from loadtests.drive import messages as say
from loadtests.drive.player import Player
from serve_app.serving.ports import free_port

runner = Environment().create_local_runner()
runner.register_message(say.TO_MASTER, lambda environment, msg, **_: print(msg.data))
Player(runner.environment)
runner.send_message(say.TO_WORKER, msgspec.msgpack.encode(say.Join("http://x", True)))
gevent.sleep(0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "Trouble" in done.stdout and "need an API key" in done.stdout, done.stderr


def test_a_worker_elsewhere_sends_the_key_that_it_was_started_with_and_no_other(tmp_path):
    seen = _Listener.seen = []
    environment = os.environ | {"MASTERS_NAME": "not for you", "OURS": "ours"}
    details = []
    with InBackground(ThreadingHTTPServer(("127.0.0.1", 0), _Listener)) as server:
        target = {"base_url": server.url, "model": "m", "variants": ["a"]}
        raw = raw_campaign("", target=target | {"api_key_env": "MASTERS_NAME"})
        for words in ((), ("--api-key-env", "NO_SUCH_KEY"), ("--api-key-env", "OURS")):
            master = f"127.0.0.1:{free_port()}"
            command = [sys.executable, "-m", "loadtests.drive.worker", "--master", master, *words]
            run = LoadRun.new(tmp_path / f"run{len(details)}", raw)
            run.files.client_log.touch()
            worker = subprocess.Popen(command, env=environment)
            try:
                run.play("--processes", "0", "--remote-workers", "1", "--listen", master)
                worker.wait(10)
            finally:
                worker.kill()
                worker.wait()
            details.append(run.ending.detail)
    assert "need an API key" in details[0] and "start this worker with --api-key-env" in details[0]
    assert "set NO_SUCH_KEY" in details[1]
    assert details[2] == ""
    assert {request["authorization"] for request in seen} == {"Bearer ours"}


def test_who_stops_reading_the_progress_does_not_hold_up_the_load(fake_server, tmp_path):
    base_url = fake_server("m@a", ttft_ms=5, itl_ms=1)
    run = LoadRun.new(tmp_path / "run", raw_campaign(base_url))
    read_end, write_end = os.pipe()
    unread = b"x" * 3199 + b"\n"
    try:
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
        os.write(write_end, unread)  # there is room for three lines
        with run.started(stdout=write_end) as process:
            assert process.wait(30) == 0
        output = os.read(read_end, 65536)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert run.ending.reason is EndReason.COMPLETE
    assert len(run.records) == 20
    assert output.startswith(unread) and output.endswith(b"\n")
    assert 1 <= len(progress_lines(output.removeprefix(unread))) <= 4


def test_locusts_page_shows_every_request_once_and_its_stop_ends_the_run(fake_server, tmp_path):
    base_url = fake_server("m@a", ttft_ms=5, itl_ms=1)
    run = LoadRun.new(tmp_path / "run", raw_campaign(base_url, stage={"duration_s": 30.0}))
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    with run.started("--web-port", str(port)) as process:
        run.wait_for_records(10)
        assert b"<title>Locust" in _read(page)
        assert b"follows its plan" in _read(f"{page}/swarm", b"user_count=9&spawn_rate=9")
        time.sleep(1.0)
        before = len(run.records)
        shown = _rows(page)["s a"]
        assert before <= shown["num_requests"] <= len(run.records) + 20
        assert b"the run stops" in _read(f"{page}/stop", b"")
        assert process.wait(10) == 3
    assert run.ending.reason is EndReason.INTERRUPTED
    assert "Locust's web page" in run.ending.detail


def _rows(page: str) -> dict:
    rows = json.loads(_read(f"{page}/stats/requests"))["stats"]
    return {row["name"]: row for row in rows}


def _read(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data, timeout=5) as answer:
        return answer.read()
