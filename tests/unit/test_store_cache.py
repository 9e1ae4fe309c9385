"""A node's cache: folders appear whole, stay while anybody uses them, and go in their order."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.store.cache import STORE_DIR, Cache, Entry, store_dir
from serve_app.store.locks import FileLock
from serve_app.store.sweep import Limits, judge, sweep

A, B, C = (letter * 64 for letter in "abc")
HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from serve_app.store.cache import Cache\n"
    "from serve_app.store.locks import FileLock\n"
    "held = {held}\n"
    "print('held', flush=True)\n"
    "time.sleep(60)\n"
)


def have(cache: Cache, digest: str, n_bytes: int = 4096, used_unix_s: float | None = None):
    work = cache.work(digest) / "files"
    work.mkdir(parents=True)
    (work / "model.safetensors").write_bytes(b"x" * n_bytes)
    lease = cache.publish(work, digest, digest)
    if used_unix_s is not None:
        os.utime(cache.root / ".leases" / digest, (used_unix_s, used_unix_s))
    return lease


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "store")


@pytest.fixture
def elsewhere():
    """Run something that holds a lock in a process of its own, until it is killed."""
    processes = []

    def hold(expression: str) -> subprocess.Popen:
        code = HOLD.format(held=expression)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
    assert store_dir({}) == tmp_path / "store"
    assert store_dir({STORE_DIR: "/mnt/nvme"}).as_posix() == "/mnt/nvme"


class TestCache:
    def test_a_checkpoint_appears_whole_with_its_name(self, cache):
        assert cache.find(A) is None
        assert cache.named("k" * 64) is None
        work = cache.work("k" * 64) / "files"
        work.mkdir(parents=True)
        (work / "config.json").write_text("{}")
        lease = cache.publish(work, "k" * 64, A)
        assert lease.is_fresh
        assert (lease.folder / "config.json").read_text() == "{}"
        assert cache.named("k" * 64) == A
        assert not cache.work("k" * 64).exists()
        again = cache.find(A)
        assert again is not None and again.folder == lease.folder and not again.is_fresh

    def test_a_checkpoint_that_is_there_already_stays(self, cache):
        first = have(cache, A, 10)
        inode = (first.folder / "model.safetensors").stat().st_ino
        second = have(cache, A, 10)
        assert (second.folder / "model.safetensors").stat().st_ino == inode

    def test_a_lease_keeps_it(self, cache):
        lease = have(cache, A)
        (entry,) = cache.entries()
        assert cache.is_used(entry)
        assert not cache.drop(entry)
        assert lease.folder.is_dir()
        lease.release()
        assert not cache.is_used(entry)
        assert cache.drop(entry)
        assert not lease.folder.exists()
        assert cache.find(A) is None
        assert cache.entries() == []

    def test_two_leases_and_one_is_given_back(self, cache):
        one, two = have(cache, A), cache.find(A)
        one.release()
        (entry,) = cache.entries()
        assert not cache.drop(entry)
        two.release()
        assert cache.drop(entry)

    def test_a_process_that_is_killed_holds_nothing(self, cache, elsewhere):
        have(cache, A).release()
        process = elsewhere(f"Cache(Path({str(cache.root)!r})).find({A!r})")
        (entry,) = cache.entries()
        assert not cache.drop(entry)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert cache.drop(entry)

    def test_who_waits_for_a_download_gets_its_turn_when_the_other_dies(self, cache, elsewhere):
        where = cache.root / ".locks" / "key"
        process = elsewhere(f"FileLock(Path({str(where)!r})).exclusive(lambda: None)")
        waited = []

        def wait():
            waited.append(1)
            process.kill()
            process.wait()

        with cache.downloading("key", wait):
            assert waited == [1]
            assert not FileLock(where).try_exclusive()
        assert FileLock(where).try_exclusive()

    def test_a_broken_off_download_is_an_entry_that_its_lock_keeps(self, cache):
        (cache.work("k") / "files").mkdir(parents=True)
        (cache.work("k") / "files" / "half").write_bytes(b"x" * 5000)
        (entry,) = cache.entries()
        assert (entry.name, entry.is_whole) == ("k", False)
        assert entry.n_bytes >= 5000
        with cache.downloading("k", lambda: None):
            assert not cache.drop(entry)
        assert cache.drop(entry)
        assert cache.entries() == []

    def test_what_a_killed_sweep_left_goes_with_the_next(self, cache):
        have(cache, A).release()
        trash = cache.root / f".trash-{B}-1"
        trash.mkdir()
        (trash / "half").write_bytes(b"x")
        sweep(cache, Limits(), 0.0, dry_run=True)
        assert trash.exists()
        sweep(cache, Limits(), 0.0)
        assert not trash.exists()
        assert cache.find(A) is not None

    def test_foreign_folders_are_left_alone(self, cache):
        (cache.root / "notes").mkdir(parents=True)
        sweep(cache, Limits(max_bytes=0), 0.0)
        assert (cache.root / "notes").is_dir()


class TestSweep:
    NOW_S = 1_000_000.0

    def test_old_ones_go_then_the_longest_unused_until_the_rest_fits(self, cache):
        have(cache, A, used_unix_s=self.NOW_S - 900).release()
        have(cache, B, used_unix_s=self.NOW_S - 90).release()
        have(cache, C, used_unix_s=self.NOW_S - 9).release()
        verdicts = sweep(cache, Limits(max_age_s=100, max_bytes=6000), self.NOW_S, dry_run=True)
        assert [each.reason for each in verdicts] == ["not used for long", "used longest ago", None]
        assert len(cache.entries()) == 3
        sweep(cache, Limits(max_age_s=100, max_bytes=6000), self.NOW_S)
        assert [entry.name for entry in cache.entries()] == [C]

    def test_what_is_in_use_stays_whatever_its_age(self, cache):
        lease = have(cache, A, used_unix_s=0)
        have(cache, B, used_unix_s=self.NOW_S).release()
        verdicts = sweep(cache, Limits(max_age_s=1, max_bytes=0), self.NOW_S)
        assert [(each.entry.name[0], each.is_used, each.reason) for each in verdicts] == [
            ("a", True, None),
            ("b", False, "used longest ago"),
        ]
        assert lease.folder.is_dir()

    def test_what_came_into_use_since_it_was_judged_stays(self, cache, monkeypatch):
        """`is_used` is patched: the moment between the two looks cannot be hit otherwise."""
        lease = have(cache, A, used_unix_s=0)
        monkeypatch.setattr(cache, "is_used", lambda entry: False)
        (verdict,) = sweep(cache, Limits(max_bytes=0), self.NOW_S)
        assert (verdict.is_used, verdict.reason) == (True, None)
        assert lease.folder.is_dir()

    ENTRIES = st.lists(
        st.builds(
            Entry,
            name=st.uuids().map(str),
            n_bytes=st.integers(0, 100),
            used_unix_s=st.integers(0, 100).map(float),
            is_whole=st.booleans(),
        ),
        max_size=8,
        unique_by=lambda entry: entry.name,
    )

    @given(
        entries=ENTRIES,
        used=st.sets(st.integers(0, 7)),
        max_age_s=st.none() | st.integers(0, 100),
        max_bytes=st.none() | st.integers(0, 400),
    )
    def test_the_limits_hold_and_no_more_goes_than_has_to(
        self, entries, used, max_age_s, max_bytes
    ):
        in_use = {entry.name for at, entry in enumerate(entries) if at in used}
        limits = Limits(max_age_s, max_bytes)
        verdicts = judge(entries, lambda entry: entry.name in in_use, limits, 100.0)
        gone = [each.entry for each in verdicts if each.reason]
        kept = [each.entry for each in verdicts if not each.reason]
        assert sorted(map(str, gone + kept)) == sorted(map(str, entries))
        assert not in_use & {entry.name for entry in gone}
        free = [entry for entry in kept if entry.name not in in_use]
        if max_age_s is not None:
            assert all(100 - entry.used_unix_s <= max_age_s for entry in free)
        if max_bytes is not None and free:
            assert sum(entry.n_bytes for entry in kept) <= max_bytes
        for entry in gone:
            if max_age_s is None or 100 - entry.used_unix_s <= max_age_s:
                later = [each for each in kept if each.used_unix_s >= entry.used_unix_s]
                assert max_bytes is not None
                assert set(map(str, free)) <= set(map(str, later))
