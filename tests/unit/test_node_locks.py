"""Locks inside one process; tests/contract has them between processes."""

import os

from serve_app.node.locks import LockHolder, RecordLock, lock_holder


def test_a_second_lock_object_of_the_same_process_does_not_get_it(tmp_path):
    path = tmp_path / "a.lock"
    first, second = RecordLock(path), RecordLock(path)
    assert first.acquire(b"one")
    assert not second.acquire(b"two")
    second.release()  # never held: nothing happens
    assert lock_holder(path) == LockHolder(os.getpid(), b"one")
    first.release()
    first.release()
    assert second.acquire(b"two")
    second.release()


def test_the_file_may_stay_the_lock_does_not(tmp_path):
    path = tmp_path / "a.lock"
    assert lock_holder(path) is None
    lock = RecordLock(path)
    assert lock.acquire(b"a longer note")
    lock.release()
    assert path.exists()
    assert lock_holder(path) is None
    assert RecordLock(path).acquire(b"short")
    assert path.read_bytes() == b"short"


def test_a_lock_goes_with_its_file(tmp_path):
    lock = RecordLock(tmp_path / "a")
    assert lock.acquire(b"note")
    lock.rename(tmp_path / "b")
    assert lock_holder(tmp_path / "b") == LockHolder(os.getpid(), b"note")
    lock.release(unlink=True)
    assert list(tmp_path.iterdir()) == []
