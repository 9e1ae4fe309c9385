"""`configs/pipelines/smoke.yaml` as a whole, on real engines: made, served, judged, recommended.

In a folder of its own: pytest ends the Serve of tests/engine_cpu before this one starts.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.fakes.browser import chromium_browser

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
STAGES = ["baseline", "measure", "int8", "validate-int8", "4-bit", "validate-4-bit", "recommend"]


def start(out: Path, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "serve_app.cli", "pipeline", "configs/pipelines/smoke.yaml"]
    return subprocess.Popen(
        [*command, "--out", str(out), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(out: Path, *words: str) -> tuple[int, str]:
    process = start(out, *words)
    output, _ = process.communicate()
    return process.returncode, output.decode()


def state(out: Path) -> dict:
    try:
        return json.loads((out / "state.json").read_bytes())
    except FileNotFoundError:
        return {"stages": {}, "running": None}


def children_with_ray(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """All its processes, once a Ray node's is among them."""
    while True:
        assert process.poll() is None, process.communicate()[0].decode()
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if "raylet" in child.name():
                    return children
        time.sleep(0.2)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that is ended while it measures, and all processes that it had."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    process = start(out)
    try:
        while state(out)["running"] != "measure":
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.5)
        children = children_with_ray(process)  # Serve is on its way up
    finally:
        process.send_signal(signal.SIGTERM)
    process.communicate()
    return out, process.returncode, children


@pytest.fixture(scope="module")
def whole(interrupted):
    out, *_ = interrupted
    began = time.monotonic()
    status, output = run(out)
    print(output)
    print(f"took {time.monotonic() - began:.0f} s on {os.cpu_count()} cores")
    assert status == 0, output
    return out, output


def test_a_signal_ends_all_it_started_and_leaves_the_stage_as_not_done(interrupted):
    out, status, children = interrupted
    assert status == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"left running: {[process.name() for process in alive]}"
    found = state(out)
    assert list(found["stages"]) == ["baseline"] and found["running"] == "measure"


def test_it_goes_on_where_it_was_ended_and_comes_to_its_end(whole):
    out, output = whole
    assert "[2/7] measure" in output and "[1/7] baseline" not in output
    assert list(state(out)["stages"]) == STAGES


def test_the_checklist_is_filled_in(whole):
    out, _ = whole
    report = json.loads((out / "pipeline.json").read_bytes())
    items = {item["title"]: item for item in report["checklist"]}
    done = {title for title, item in items.items() if item["done"] == "done"}
    assert {
        "Baseline benchmarked", "Memory reduction", "A/B in staging",
        "Model card, correctness gate passed",
    } <= done, items  # fmt: skip
    # forty items decide little, two busy cores less: open is allowed, wrong or missing is not
    assert not [item for item in items.values() if item["done"] in ("failed", "not done")]
    assert items["Quality on a validation set"]["figure"].count("items") == 2
    assert "at 1" in items["Production batch sizes"]["figure"]
    for item in items.values():
        for path in item["evidence"]:
            assert (out / path).is_file(), path


def test_its_report_opens_in_a_browser_without_errors(whole, tmp_path):
    out, _ = whole
    with chromium_browser(tmp_path / "profile") as browser:
        browser.open(out / "pipeline.html")
        assert not [line for line in browser.console() if line["level"] == "SEVERE"]
        assert browser.ask("document.querySelectorAll('#checklist tbody tr').length") == 8


def test_the_last_validation_asks_only_who_is_new(whole):
    out, _ = whole
    findings = state(out)["stages"]["validate-4-bit"]["findings"]
    assert findings["taken_over"] == ["baseline", "int8"]


def test_the_split_was_that_of_the_file(whole):
    out, _ = whole
    split = json.loads((out / "06-validate-4-bit" / "split.json").read_bytes())
    assert (split["n_requests"], split["n_failed"], split["n_misrouted"]) == (100, 0, 0)
    assert split["reasons"] == {"sticky": 100}
    assert all(each["served"] == each["expected"] > 20 for each in split["shares"])


def test_run_again_it_does_nothing(whole):
    out, _ = whole
    before = (out / "state.json").read_bytes()
    status, output = run(out)
    assert status == 0 and "[" not in output.split("Production checklist")[0]
    assert (out / "state.json").read_bytes() == before
