"""cluster/image/follow-logs: what is in a pod's log files comes out once, a JSON object a line."""

import importlib.machinery
import importlib.util
import json
import logging.handlers
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "image" / "follow-logs"


@pytest.fixture
def script():
    loader = importlib.machinery.SourceFileLoader("follow_logs", str(SCRIPT))
    spec = importlib.util.spec_from_loader("follow_logs", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "serve").mkdir()
    return tmp_path


@pytest.fixture
def follower(script, logs):
    return script.Follower(logs)


def test_serves_own_lines_pass_as_they_are_and_others_say_their_file(follower, logs):
    (logs / "serve" / "replica_a.log").write_text('{"message": "request", "status": 200}\n')
    (logs / "worker-1.err").write_text("Traceback (most recent call last):\n{not json}\n\n")
    (logs / "monitor.log").write_text("of no interest\n")
    first, *rest = follower.lines()
    assert first == '{"message": "request", "status": 200}'
    assert [json.loads(each) for each in rest] == [
        {"file": "worker-1.err", "message": "Traceback (most recent call last):"},
        {"file": "worker-1.err", "message": "{not json}"},
    ]
    assert follower.lines() == []


def test_a_line_comes_when_it_is_whole_and_the_last_one_in_any_case(follower, logs):
    file = logs / "serve" / "replica_a.log"
    file.write_text('{"message": "re')
    assert follower.lines() == []
    with file.open("a") as more:
        more.write('quest"}\n{"mess')
    assert follower.lines() == ['{"message": "request"}']
    assert json.loads(follower.lines(last=True)[0])["message"] == '{"mess'
    assert follower.lines(last=True) == []


def test_a_rotated_file_is_read_to_its_end_and_once(follower, logs):
    handler = logging.handlers.RotatingFileHandler(
        logs / "serve" / "replica_a.log", maxBytes=200, backupCount=1
    )
    found = []
    for number in range(40):
        handler.handle(logging.makeLogRecord({"msg": f'{{"n": {number}}}'}))
        if number % 3 == 0:
            found += follower.lines()
    handler.close()
    found += follower.lines()
    assert [json.loads(each)["n"] for each in found] == list(range(40))
    follower.lines()
    assert len(follower._open) == 1


def test_a_new_session_of_ray_is_found_behind_the_same_name(script, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name / "logs" / "serve").mkdir(parents=True)
        (tmp_path / name / "logs" / "serve" / "controller.log").write_text(f'{{"of": "{name}"}}\n')
    latest = tmp_path / "session_latest"
    latest.symlink_to("first")
    follower = script.Follower(latest / "logs")
    assert follower.lines() == ['{"of": "first"}']
    latest.unlink()
    latest.symlink_to("second")
    assert follower.lines() == ['{"of": "second"}']


def test_a_line_without_an_end_does_not_fill_the_memory(script, follower, logs, monkeypatch):
    monkeypatch.setattr(script, "LONGEST_BYTES", 100)
    (logs / "worker-1.out").write_bytes(b"x" * 300)
    assert len(json.loads(follower.lines()[0])["message"]) == 300
    assert follower.lines() == []
