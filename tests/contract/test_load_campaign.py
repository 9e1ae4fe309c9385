"""A campaign from the question which variants there are to its report, by way of `quantile`."""

import fcntl
import io
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager

import msgspec
import pytest
import yaml
from rich.console import Console

from loadtests.analyse.nouns import Verdict
from loadtests.campaign import parse_campaign
from loadtests.observe.pages import RAY_FOLDER
from loadtests.records.manifest import Ending, EndReason, RunFiles
from loadtests.run import LoadOptions, run_campaign
from loadtests.stop import STOP_GRACE_S
from serve_app.domain.errors import ConfigError, UnknownModelError
from tests.fakes.load_run import (
    SIGNALS_HEARD,
    LoadRun,
    hear_signals,
    is_running,
    load_processes,
    raw_campaign,
)

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
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "records.jsonl").touch()
    with pytest.raises(ConfigError, match=r"already holds a run \(records\.jsonl\)"):
        run_campaign(campaign, tmp_path / "left")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out: need a folder that can be made"):
        run_campaign(campaign, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LoadOptions(remote_workers=2), "have --remote-workers alone: give both or neither"),
        (LoadOptions(listen="127.0.0.1:5557"), "have --listen 127.0.0.1:5557: give both"),
        (LoadOptions(remote_workers=1, listen="5557"), "--listen: need HOST:PORT, have '5557'"),
        (LoadOptions(remote_workers=1, listen=":5557"), "--listen: need HOST:PORT"),
        (LoadOptions(remote_workers=1, listen="h:65536"), "--listen: need HOST:PORT"),
        (LoadOptions(remote_workers=1, listen="h:0"), "--listen: need HOST:PORT"),
        (LoadOptions(processes=2, remote_workers=3, listen="h:1"), "have 4 for 5"),
    ],
)
def test_options_that_no_load_process_could_run_with_are_refused_at_once(tmp_path, options, said):
    campaign = campaign_of("http://127.0.0.1:9", in_flight_cap=4)  # nobody is asked
    with pytest.raises(ConfigError) as refused:
        run_campaign(campaign, tmp_path / "run", options=options)
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_search_that_begins_below_one_request_is_refused_before_the_wait(fake_server, tmp_path):
    search = {"duration_s": 2.0, "low_per_s": 0.1, "high_per_s": 4}
    raw = {"stages": [], "search": search, "slo": {"ttft_ms": 100}}
    with pytest.raises(ConfigError, match=r"0\.1rps: need one or more requests"):
        run_campaign(campaign_of(fake_server("m@a"), **raw), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_wrong_input(fake_server, tmp_path):
    file = tmp_path / "campaign.yaml"
    base_url = fake_server("m@a")
    file.write_text(yaml.safe_dump(raw_campaign(base_url)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = ["loadtest", str(file), "--out", str(tmp_path / "run")]
        more = ["--remote-workers", "1", "--listen", listen]
        done = subprocess.run([*QUANTILE, *command, *more], capture_output=True, text=True)
    assert done.returncode == 2, done
    assert f"error: --listen {listen}: cannot listen there" in done.stderr
    assert done.stderr.rstrip().endswith("(nothing was sent)")


def test_what_is_wrong_with_the_metrics_is_told_in_one_line(fake_server, tmp_path):
    metrics = {"urls": ["http://127.0.0.1:9/metrics"]}
    console = Console(file=io.StringIO(), width=80)
    campaign = campaign_of(fake_server("m@a"), stage={"duration_s": 0.2}, metrics=metrics)
    run_campaign(campaign, tmp_path / "run", console=console)
    (line,) = [text for text in console.file.getvalue().splitlines() if "metrics" in text]
    assert line.startswith("metrics: none of the campaign's series was found; 1 x http://127.")


def test_a_target_elsewhere_is_not_given_the_metrics_of_this_machines_ray(
    fake_server, tmp_path, monkeypatch
):
    monkeypatch.setattr("loadtests.observe.pages.is_this_machine", lambda host: False)
    metrics = {"file_sd": str(RAY_FOLDER / "none.json")}
    campaign = campaign_of(fake_server("m@a"), stage={"duration_s": 0.2}, metrics=metrics)
    run_campaign(campaign, tmp_path / "run")
    manifest = RunFiles(tmp_path / "run").read_manifest()
    assert manifest.parsed().metrics is None
    assert any("none.json" in note for note in manifest.notes)
    assert not RunFiles(tmp_path / "run").samples.exists()


def test_manifest_and_ending_are_whole_or_not_there(tmp_path, monkeypatch):
    files = RunFiles(tmp_path)
    files.write_ending(Ending(reason=EndReason.COMPLETE))
    write = type(files.ending).write_bytes

    def half(path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(type(files.ending), "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        files.write_ending(Ending(reason=EndReason.FAILED, detail="x"))
    assert files.read_ending() == Ending(reason=EndReason.COMPLETE)


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


@contextmanager
def quantile_loadtest(base_url: str, folder, *words: str, **started: object):
    """`quantile loadtest` of 20 s or more in a session of its own, and its run; ended afterwards.

    `started` changes how the process is started.
    """
    file, out = folder / "campaign.yaml", folder / "run"
    target = {"base_url": base_url, "model": "m"}
    file.write_text(yaml.safe_dump(raw_campaign(base_url, target=target, blocks=20)))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **SIGNALS_HEARD}
    process = subprocess.Popen(
        [*QUANTILE, "loadtest", str(file), "--out", str(out), *words],
        start_new_session=True,
        **pipes | started,
    )
    try:
        yield process, LoadRun.at(out)
    finally:
        process.kill()
        process.wait()


def check_partial(process, run: LoadRun) -> None:
    """It ends by itself with status 3, an ending and a report that say so."""
    printed, _ = process.communicate(timeout=40)
    assert process.returncode == 3, printed.decode()
    assert b"PARTIAL" in printed.upper()
    assert b"Traceback" not in printed
    assert run.ending.reason is EndReason.INTERRUPTED
    report = msgspec.json.decode(run.files.report_json.read_bytes())
    assert report["is_partial"] is True
    assert run.files.report_html.exists()
    assert run.files.report_md.exists()


def check_gone(run: LoadRun, pids: list[int]) -> None:
    run.wait_for(lambda: not any(map(is_running, pids)), "the end of the load processes")


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGHUP, 1)],
)
def test_a_signal_leaves_a_partial_report_and_nothing_running(
    fake_server, tmp_path, number, processes
):
    base_url = fake_server("m@a", "m@b", ttft_ms=20, itl_ms=1)
    with quantile_loadtest(base_url, tmp_path, "--processes", str(processes)) as (process, run):
        run.wait_for(lambda: len(run.cells) > 1, "the second cell")
        (master,) = load_processes(process.pid)
        children = [master, *load_processes(master)]
        assert len(children) == {1: 1, 2: 3}[processes]
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        check_partial(process, run)
        check_gone(run, children)


def test_a_second_signal_ends_a_load_process_that_hangs_and_costs_no_report(fake_server, tmp_path):
    base_url = fake_server("m@a", ttft_ms=20, itl_ms=1)
    with quantile_loadtest(base_url, tmp_path, "--processes", "2") as (process, run):
        run.wait_for_records()
        (master,) = load_processes(process.pid)
        children = [master, *load_processes(master)]
        os.kill(master, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        hurried_s = time.monotonic()
        run.wait_for(lambda: not is_running(master), "the end of the load process")
        assert time.monotonic() - hurried_s < STOP_GRACE_S / 2
        check_partial(process, run)
        assert run.ending.detail.startswith("SIGINT: the load process ended with status -9")
        check_gone(run, children)


def test_two_signals_at_once_cost_no_report(fake_server, tmp_path):
    """As where a wrapper hands on the Ctrl-C that its whole group got."""
    base_url = fake_server("m@a", ttft_ms=20, itl_ms=1)
    with quantile_loadtest(base_url, tmp_path) as (process, run):
        run.wait_for_records()
        children = load_processes(process.pid)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        check_partial(process, run)
        check_gone(run, children)


def test_ctrl_c_before_the_load_process_can_hear_it_is_no_failure(fake_server, tmp_path):
    base_url = fake_server("m@a")
    with quantile_loadtest(base_url, tmp_path) as (process, run):
        run.wait_for(lambda: load_processes(process.pid), "the load process")
        children = load_processes(process.pid)
        process.send_signal(signal.SIGINT)
        check_partial(process, run)
        assert run.records == []
        check_gone(run, children)


def test_the_third_signal_is_not_held_back(fake_server, tmp_path, monkeypatch):
    """Where even the report hangs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time, types\n"
        "if 'loadtest' in sys.orig_argv:\n"
        "    stuck = types.ModuleType('loadtests.report.write')\n"
        "    stuck.write_report = lambda folder: time.sleep(60)\n"
        "    sys.modules[stuck.__name__] = stuck\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    base_url = fake_server("m@a", ttft_ms=20, itl_ms=1)
    with quantile_loadtest(base_url, tmp_path) as (process, run):
        run.wait_for_records()
        process.send_signal(signal.SIGINT)
        run.wait_for(lambda: run.ending is not None, "the ending")
        run.wait_for(lambda: not load_processes(process.pid), "the end of the load process")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_a_closed_terminal_leaves_a_report(fake_server, tmp_path):
    """SIGHUP, and every write to the terminal fails from then on."""
    base_url = fake_server("m@a", ttft_ms=20, itl_ms=1)
    ours, terminal = os.openpty()
    seen: list[bytes] = []

    def read() -> None:
        while not run.records:
            seen.append(os.read(ours, 1 << 16))
        os.close(ours)

    def sit_down() -> None:
        hear_signals()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    with quantile_loadtest(
        base_url, tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=sit_down
    ) as (process, run):
        os.close(terminal)
        reader = threading.Thread(target=read)
        reader.start()
        assert process.wait(40) == 3
        reader.join()
    assert any(b"in flight" in text for text in seen)
    assert run.ending.reason is EndReason.INTERRUPTED
    assert run.files.report_html.exists()
