"""A download: in parts, resumed where it was, and nothing passed that is not what it should be."""

import hashlib
import shutil
from collections import namedtuple
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.domain.errors import CheckpointError, UnreachableError
from serve_app.store import transfer
from serve_app.store.journal import Journal
from serve_app.store.retry import Backoff, persist
from serve_app.store.transfer import FILES, JOURNAL, TransferSettings, Wanted, download, plan_parts
from tests.fakes.memory_source import MemorySource

DATA = Random(1).randbytes(12_345)
CONTENT = {"model.safetensors": DATA, "config.json": b"{}", "empty.txt": b""}
QUICK = TransferSettings(concurrency=4, backoff=Backoff(attempts=4, first_s=0, longest_s=0))


def wanted(source: MemorySource) -> dict[str, Wanted]:
    return {name: Wanted(len(source.files[name]), source.checksums[name]) for name in source.files}


def pull(source, work, advance=lambda n_bytes: None, quick=QUICK):
    return download(source, wanted(source), work, quick, advance)


def on_disk(work):
    return {path.name: path.read_bytes() for path in (work / FILES).iterdir()}


@given(
    sizes=st.dictionaries(st.text("ab", min_size=1), st.integers(0, 500), max_size=4),
    part_bytes=st.integers(1, 200),
)
def test_parts_cover_every_byte_once(sizes, part_bytes):
    parts = plan_parts({name: Wanted(size) for name, size in sizes.items()}, part_bytes)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(0 < part.n_bytes <= part_bytes for part in parts)
    for name, size in sizes.items():
        mine = [part for part in parts if part.file == name]
        covered = [at for part in mine for at in range(part.start, part.start + part.n_bytes)]
        assert covered == list(range(size))


class TestDownload:
    def test_every_file_is_there_with_its_digest(self, tmp_path):
        source = MemorySource(CONTENT)
        told: list[int] = []
        found = pull(source, tmp_path / "w", told.append)
        assert on_disk(tmp_path / "w") == CONTENT
        assert {name: entry.sha256 for name, entry in found.items()} == {
            name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()
        }
        assert sum(told) == source.sent_bytes == sum(map(len, CONTENT.values()))
        assert len(source.asked) == 14
        assert source.most_at_once <= QUICK.concurrency

    def test_a_connection_that_breaks_now_and_then_costs_nothing_twice(self, tmp_path):
        source = MemorySource(CONTENT)
        rng = Random(2)
        source.spoil = lambda name, start, data: None if rng.random() < 0.3 else data
        patient = TransferSettings(backoff=Backoff(attempts=50, first_s=0, longest_s=0))
        pull(source, tmp_path / "w", quick=patient)
        assert on_disk(tmp_path / "w") == CONTENT
        assert source.sent_bytes == sum(map(len, CONTENT.values()))

    def test_a_source_that_stays_away_ends_it_and_the_next_goes_on_from_there(self, tmp_path):
        source = MemorySource(CONTENT)
        source.spoil = lambda name, start, data: None if start >= 6000 else data
        with pytest.raises(UnreachableError, match="try again"):
            pull(source, tmp_path / "w")
        before = source.sent_bytes
        assert 0 < before < len(DATA)
        source.spoil = lambda name, start, data: data
        told: list[int] = []
        pull(source, tmp_path / "w", told.append)
        assert on_disk(tmp_path / "w") == CONTENT
        assert source.sent_bytes == sum(map(len, CONTENT.values()))
        assert told[0] == before
        assert sum(told) == source.sent_bytes

    def test_bytes_that_the_wire_changed_are_fetched_again(self, tmp_path):
        source = MemorySource(CONTENT)
        spoilt = []

        def once(name, start, data):
            if start == 3000 and not spoilt:
                spoilt.append(start)
                return b"x" * len(data)
            return data

        source.spoil = once
        told: list[int] = []
        pull(source, tmp_path / "w", told.append)
        assert on_disk(tmp_path / "w") == CONTENT
        assert source.sent_bytes == len(DATA) * 2 + 2
        assert sum(told) == len(DATA) + 2

    def test_bytes_that_are_wrong_twice_are_refused_and_asked_for_anew_next_time(self, tmp_path):
        source = MemorySource(CONTENT)
        source.spoil = lambda name, start, data: b"x" * len(data) if start == 3000 else data
        with pytest.raises(CheckpointError) as caught:
            pull(source, tmp_path / "w")
        assert "memory://m/model.safetensors is damaged" in str(caught.value)
        assert hashlib.sha256(DATA).hexdigest() in str(caught.value)
        source.spoil = lambda name, start, data: data
        pull(source, tmp_path / "w")
        assert on_disk(tmp_path / "w") == CONTENT

    def test_bytes_lost_on_the_disk_after_they_were_counted(self, tmp_path):
        """As after a power cut: the journal is there, what it counts is not."""
        source = MemorySource(CONTENT)
        pull(source, tmp_path / "w")
        file = tmp_path / "w" / FILES / "model.safetensors"
        file.write_bytes(DATA[:5000] + bytes(len(DATA) - 5000))
        pull(source, tmp_path / "w")
        assert on_disk(tmp_path / "w") == CONTENT

    def test_a_git_blob_is_checked_by_its_name(self, tmp_path):
        source = MemorySource({"config.json": b"{}"})
        blob = hashlib.sha1(b"blob 2\0{}").hexdigest()
        good = {"config.json": Wanted(2, f"git:{blob}")}
        found = download(source, good, tmp_path / "w", QUICK)
        assert found["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
        bad = {"config.json": Wanted(2, f"git:{'0' * 40}")}
        with pytest.raises(CheckpointError, match=f"need git:{'0' * 40}, have git:{blob}"):
            download(source, bad, tmp_path / "v", QUICK)

    def test_something_else_under_the_same_name_begins_anew(self, tmp_path):
        source = MemorySource(CONTENT)
        source.spoil = lambda name, start, data: None if start >= 6000 else data
        with pytest.raises(UnreachableError):
            pull(source, tmp_path / "w")
        other = MemorySource({**CONTENT, "model.safetensors": DATA[::-1]})
        pull(other, tmp_path / "w")
        assert on_disk(tmp_path / "w")["model.safetensors"] == DATA[::-1]
        assert other.sent_bytes == len(DATA) + 2

    def test_no_space_is_said_before_the_first_byte(self, tmp_path, monkeypatch):
        """`disk_usage` is patched: a full disk is not at hand here."""
        usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 4096)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        source = MemorySource(CONTENT)
        with pytest.raises(CheckpointError) as caught:
            pull(source, tmp_path / "w")
        assert "need 12.1 KiB more" in str(caught.value)
        assert "have 4.00 KiB" in str(caught.value)
        assert "quantile store gc" in str(caught.value)
        assert source.asked == []

    def test_what_is_there_already_needs_no_space_again(self, tmp_path, monkeypatch):
        source = MemorySource(CONTENT)
        pull(source, tmp_path / "w")
        usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 0)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        pull(source, tmp_path / "w")

    def test_a_disk_that_fails_is_said(self, tmp_path, monkeypatch):
        def full(fd, piece, start):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(transfer, "_write_at", full)
        with pytest.raises(CheckpointError, match=r"cannot write to .*: No space left on device"):
            pull(MemorySource(CONTENT), tmp_path / "w")

    @settings(max_examples=25)
    @given(seed=st.integers(0, 1 << 30))
    def test_whatever_breaks_when_no_byte_is_asked_for_twice(self, seed, tmp_path_factory):
        rng = Random(seed)
        work = tmp_path_factory.mktemp("w")
        source = MemorySource({"a": rng.randbytes(5000), "b": rng.randbytes(700)})
        source.part_bytes = rng.randint(100, 3000)
        source.spoil = lambda name, start, data: None if rng.random() < 0.4 else data
        for _ in range(200):
            try:
                pull(source, work)
                break
            except UnreachableError:
                continue
        assert on_disk(work) == source.files
        assert source.sent_bytes == 5700


class TestJournal:
    KEY = bytes(range(32))

    def test_counts_outlive_the_process(self, tmp_path):
        with Journal(tmp_path / JOURNAL, self.KEY, [10, 20]) as journal:
            assert journal.done == [0, 0]
            journal.mark(1, 7)
        with Journal(tmp_path / JOURNAL, self.KEY, [10, 20]) as journal:
            assert journal.done == [0, 7]

    @pytest.mark.parametrize(
        "spoil",
        [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"x" + raw[1:], lambda raw: raw[:20]],
    )
    def test_one_that_is_damaged_or_not_ours_is_begun_anew(self, tmp_path, spoil):
        path = tmp_path / JOURNAL
        with Journal(path, self.KEY, [10, 20]) as journal:
            journal.mark(0, 10)
        path.write_bytes(spoil(path.read_bytes()))
        with Journal(path, self.KEY, [10, 20]) as journal:
            assert journal.done == [0, 0]
            journal.mark(1, 3)
        with Journal(path, self.KEY, [10, 20]) as journal:
            assert journal.done == [0, 3]

    def test_a_count_above_the_part_is_not_believed(self, tmp_path):
        with Journal(tmp_path / JOURNAL, self.KEY, [10]) as journal:
            journal.mark(0, 1 << 40)
        with Journal(tmp_path / JOURNAL, self.KEY, [10]) as journal:
            assert journal.done == [10]

    def test_another_download_is_another_key(self, tmp_path):
        with Journal(tmp_path / JOURNAL, self.KEY, [10]) as journal:
            journal.mark(0, 4)
        with Journal(tmp_path / JOURNAL, self.KEY[::-1], [10]) as journal:
            assert journal.done == [0]


class TestBackoff:
    def test_pauses_grow_are_random_and_have_an_end(self):
        backoff = Backoff(attempts=8, first_s=0.5, longest_s=20)
        for failures in range(1, 8):
            most_s = min(20, 0.5 * 2 ** (failures - 1))
            pauses = [backoff.pause_s(failures, Random(seed)) for seed in range(200)]
            assert all(0 <= pause <= most_s for pause in pauses)
            assert max(pauses) > 0.9 * most_s
            assert min(pauses) < 0.1 * most_s
        assert backoff.pause_s(8, Random(1)) is None

    def test_persist_gives_up_in_the_end_and_at_once_where_it_would_not_help(self):
        calls, slept = [], []

        def call(error):
            calls.append(1)
            raise error

        with pytest.raises(UnreachableError):
            persist(lambda: call(UnreachableError("x")), Backoff(3), Random(1), slept.append)
        assert (len(calls), len(slept)) == (3, 2)
        with pytest.raises(CheckpointError):
            persist(lambda: call(CheckpointError("x")), Backoff(3), Random(1), slept.append)
        assert (len(calls), len(slept)) == (4, 2)
