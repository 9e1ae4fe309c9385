"""The shadow log on a real file system: rotation, replicas that share it, disks that are full."""

import json
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from serve_app.config.shadow import ShadowLogConfig
from serve_app.serving.shadow_log import ShadowLog


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "shadow.jsonl"


def log_to(path: Path, **settings: int) -> ShadowLog:
    return ShadowLog(ShadowLogConfig(path=str(path), **settings))


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def test_lines_are_appended_and_only_the_owner_reads_them(path):
    log = log_to(path)
    assert log.write(b"1\n")
    log.close()
    assert log.write(b"2\n")
    assert lines_of(path) == [b"1", b"2"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rotation_keeps_so_many_and_loses_the_oldest(path):
    log = log_to(path, max_bytes=20, keep=2)
    for number in range(8):
        assert log.write(b"line %03d\n" % number)  # two fit
    assert lines_of(path) == [b"line 006", b"line 007"]
    assert lines_of(path.with_name("shadow.jsonl.1")) == [b"line 004", b"line 005"]
    assert lines_of(path.with_name("shadow.jsonl.2")) == [b"line 002", b"line 003"]
    assert len(list(path.parent.iterdir())) == 3


def test_nothing_is_kept_with_keep_0(path):
    log = log_to(path, max_bytes=10, keep=0)
    for number in range(3):
        log.write(b"line %03d\n" % number)
    assert lines_of(path) == [b"line 002"]
    assert len(list(path.parent.iterdir())) == 1


def test_a_line_longer_than_a_file_has_a_file_of_its_own(path):
    log = log_to(path, max_bytes=10, keep=3)
    for line in (b"a\n", b"b" * 50 + b"\n", b"c\n"):
        assert log.write(line)
    assert lines_of(path) == [b"c"]
    assert lines_of(path.with_name("shadow.jsonl.1")) == [b"b" * 50]


def test_a_file_that_somebody_moved_away_is_made_anew(path):
    log = log_to(path)
    log.write(b"1\n")
    path.rename(path.with_name("moved"))
    assert log.write(b"2\n")
    path.unlink()
    assert log.write(b"3\n")
    assert lines_of(path.with_name("moved")) == [b"1"]
    assert lines_of(path) == [b"3"]


def _write_many(path: Path, writer: int) -> None:
    log = log_to(path, max_bytes=2_000, keep=100)
    for number in range(300):
        assert log.write(json.dumps([writer, number, "x" * (number % 40)]).encode() + b"\n")


def test_two_replicas_share_the_file_while_it_rotates(path):
    spawn = get_context("fork")
    writers = [spawn.Process(target=_write_many, args=(path, each)) for each in range(2)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(30)
    assert [each.exitcode for each in writers] == [0, 0]
    files = list(path.parent.iterdir())
    assert len(files) > 5
    assert all(each.stat().st_size <= 2_000 for each in files)
    found = [json.loads(line)[:2] for each in files for line in lines_of(each)]
    assert sorted(found) == [[writer, n] for writer in range(2) for n in range(300)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_log_with_one_warning(caplog):
    log = log_to(Path("/dev/full"))
    with caplog.at_level("WARNING", logger="ray.serve"):
        assert [log.write(b"line\n") for _ in range(3)] == [False, False, False]
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert "No space left" in log.failure


def test_a_disk_that_fills_up_leaves_no_part_of_a_line(path, monkeypatch):
    """Patched, as a disk that fills up in the middle of a line cannot be had in a test."""
    log = log_to(path)
    log.write(b"whole\n")
    import serve_app.serving.shadow_log as module

    real = module.os.write
    left = [4]

    def write(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        n, left[0] = left[0], 0
        return real(fd, data[:n])

    monkeypatch.setattr(module.os, "write", write)
    assert not log.write(b"does not fit\n")
    assert lines_of(path) == [b"whole"]


@pytest.mark.parametrize("where", ["folder", "file/below"])
def test_a_path_that_cannot_be_written_ends_the_log(tmp_path, where, caplog):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    log = log_to(tmp_path / where)
    assert not log.write(b"line\n")
    assert log.failure is not None
    assert len(caplog.records) == 1
