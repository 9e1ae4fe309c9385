"""The files that grow while a run goes on."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import overload

import msgspec

from loadtests.records.manifest import RunFiles
from loadtests.records.record import CellPlan, CellRun, JsonlWriter, RequestRecord


class Keeper:
    """Writes cells, records and runs; all of it is on disk after `close`."""

    def __init__(self, files: RunFiles) -> None:
        self._path = files.records
        self._cells = JsonlWriter(files.cells)
        self._records = JsonlWriter(files.records)
        self._runs = JsonlWriter(files.runs)
        self._size = self._cell_start = 0

    def begin(self, plan: CellPlan) -> None:
        """Write down a cell before it starts."""
        self._cells.write(plan)
        self._cells.flush()
        self._cell_start = self._size

    def keep(self, lines: bytes) -> None:
        """Append records; whole lines."""
        self._records.write_lines(lines)
        self._records.flush()
        self._size += len(lines)

    def end(self, run: CellRun) -> None:
        """Write down how a cell went for one worker."""
        self._runs.write(run)
        self._runs.flush()

    def of_cell(self) -> "StoredRecords":
        """The records since `begin`."""
        return StoredRecords(self._path, self._cell_start, self._size)

    def close(self) -> None:
        """Everything to disk: one file that cannot be closed holds back no other."""
        with ExitStack() as files:
            for file in (self._records, self._runs, self._cells):
                files.callback(file.close)


class StoredRecords(Sequence[RequestRecord]):
    """Records in the order in which they were over, read back from the file when first asked for:
    a long run of fixed stages need not hold what only a search looks at.
    """

    def __init__(self, path: Path, start: int, end: int) -> None:
        self._path, self._start, self._end = path, start, end

    @cached_property
    def _records(self) -> list[RequestRecord]:
        with self._path.open("rb") as file:
            file.seek(self._start)
            lines = file.read(self._end - self._start)
        records = msgspec.json.Decoder(RequestRecord).decode_lines(lines)
        return sorted(records, key=lambda record: record.t_end_ns or record.t_sched_ns)

    @overload
    def __getitem__(self, at: int) -> RequestRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[RequestRecord]: ...
    def __getitem__(self, at: int | slice) -> RequestRecord | Sequence[RequestRecord]:
        return self._records[at]

    def __iter__(self) -> Iterator[RequestRecord]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
