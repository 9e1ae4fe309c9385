"""Orphans of real, killed owners are ended; nobody else ever is."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from serve_app.node.processes import ProcessId, identify, is_alive, process_tree, this_process
from serve_app.node.registry import (
    OWNER,
    EngineOwner,
    EngineRecord,
    announce_owner,
    engine_records,
    reap_orphans,
    register_engine_process,
    variants_by_pid,
)

ENGINE = (
    "from serve_app.node.registry import register_engine_process\n"
    "register_engine_process(); register_engine_process()\n"
    "print('recorded', flush=True); input()"
)
BYSTANDER = "print('here', flush=True); input()"
Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
            cwd=Path(__file__).parents[2],
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def owned_by(process: ProcessId, directory: Path) -> dict[str, str]:
    owner = EngineOwner(process, "awq", ("GPU-a",), 5, str(directory))
    return {OWNER: msgspec.json.encode(owner).decode()}


def write(directory: Path, record: EngineRecord) -> Path:
    path = directory / "engines" / f"{record.process.pid}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(record))
    return path


def test_a_process_is_its_pid_and_its_start(spawn):
    process = spawn(BYSTANDER)
    known = identify(process.pid)
    assert known is not None
    assert is_alive(known)
    assert known == identify(process.pid)
    assert not is_alive(ProcessId(known.pid, "another:1"))
    assert known.started.partition(":")[0] == this_process().started.partition(":")[0]
    process.kill()
    while identify(process.pid):
        pass  # dying; then a zombie, since nobody has waited for it
    assert not is_alive(known)
    process.wait()
    assert not is_alive(known)
    assert process_tree(process.pid) == []
    assert process_tree(os.getpid())[0] == os.getpid()


def test_a_name_with_brackets_and_spaces_is_no_riddle(spawn):
    rename = "open('/proc/self/comm', 'w').write('a) R (b ')\n"
    assert identify(spawn(rename + BYSTANDER).pid) is not None


def test_engines_of_a_live_owner_are_left_alone(spawn, tmp_path):
    owner = spawn(BYSTANDER)
    engine = spawn(ENGINE, **owned_by(identify(owner.pid), tmp_path))
    (record,) = engine_records(tmp_path)
    assert (record.process.pid, record.owner.variant) == (engine.pid, "awq")
    assert variants_by_pid(tmp_path) == {engine.pid: "awq", owner.pid: "awq"}
    assert reap_orphans(tmp_path).ended == ()
    assert engine.poll() is None
    assert engine_records(tmp_path) == [record]


@pytest.mark.parametrize("buried", [False, True], ids=["zombie", "gone"])
def test_engines_of_a_killed_owner_are_ended_and_forgotten(spawn, tmp_path, buried):
    owner = spawn(BYSTANDER)
    environ = owned_by(identify(owner.pid), tmp_path)
    engines = [spawn(ENGINE, **environ), spawn(ENGINE, **environ)]
    bystander = spawn(BYSTANDER)
    owner.kill()
    while identify(owner.pid):
        pass
    if buried:
        owner.wait()
    reaped = reap_orphans(tmp_path)
    assert {record.process.pid for record in reaped.ended} == {engine.pid for engine in engines}
    assert reaped.remaining == ()
    assert [engine.wait(1) for engine in engines] == [-9, -9]
    assert bystander.poll() is None
    assert list((tmp_path / "engines").iterdir()) == []


def test_another_process_under_a_recorded_pid_is_never_touched(spawn, tmp_path):
    bystander = spawn(BYSTANDER)
    reused = dataclasses.replace(identify(bystander.pid), started="an-earlier-boot:4711")
    gone = ProcessId(2**22 + 1, "x:1")
    path = write(tmp_path, EngineRecord(reused, EngineOwner(gone, "awq", (), 0, str(tmp_path))))
    reaped = reap_orphans(tmp_path)
    assert (reaped.ended, reaped.remaining) == ((), ())
    assert not path.exists()
    assert bystander.poll() is None


def test_another_process_under_the_owners_pid_is_no_owner(spawn, tmp_path):
    stranger = identify(spawn(BYSTANDER).pid)
    dead_owner = dataclasses.replace(stranger, started="an-earlier-boot:4711")
    engine = spawn(ENGINE, **owned_by(dead_owner, tmp_path))
    assert len(reap_orphans(tmp_path).ended) == 1
    assert engine.wait(1) == -9
    assert is_alive(stranger)


def test_several_may_reap_at_once(spawn, tmp_path):
    dead = ProcessId(2**22 + 1, "x:1")
    engines = [spawn(ENGINE, **owned_by(dead, tmp_path)) for _ in range(4)]
    failures = []

    def reap() -> None:
        try:
            assert reap_orphans(tmp_path).remaining == ()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=reap) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [engine.wait(1) for engine in engines] == [-9] * 4
    assert engine_records(tmp_path) == []


def test_one_that_does_not_end_is_reported_and_kept(spawn, tmp_path, monkeypatch):
    engine = spawn(ENGINE, **owned_by(ProcessId(2**22 + 1, "x:1"), tmp_path))
    monkeypatch.setattr("serve_app.node.registry.psutil.Process.kill", lambda self: None)
    reaped = reap_orphans(tmp_path, wait_s=0.1)
    assert [record.process.pid for record in reaped.remaining] == [engine.pid]
    assert reaped.ended == ()
    assert len(engine_records(tmp_path)) == 1


def test_a_record_that_cannot_be_read_harms_nobody(spawn, tmp_path, caplog):
    engine = spawn(ENGINE, **owned_by(this_process(), tmp_path))
    (tmp_path / "engines" / "1.json").write_text('{"process": 1')
    assert reap_orphans(tmp_path).ended == ()
    assert "1.json is no record" in caplog.text
    assert engine.poll() is None


def test_a_replica_is_not_its_own_engine(tmp_path, monkeypatch):
    monkeypatch.delenv(OWNER, raising=False)
    register_engine_process()  # no replica announced itself: vLLM outside of QuanTile
    monkeypatch.setenv(OWNER, "")
    announce_owner("awq", ("host",), 7, tmp_path)
    register_engine_process()
    assert not (tmp_path / "engines").exists()
    owner = msgspec.json.decode(os.environ[OWNER], type=EngineOwner)
    assert owner == EngineOwner(this_process(), "awq", ("host",), 7, str(tmp_path))
