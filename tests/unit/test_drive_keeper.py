"""The files of a run while it goes on."""

import pytest

from loadtests.drive.keeper import Keeper
from loadtests.drive.outbox import Outbox
from loadtests.records.manifest import RunFiles
from loadtests.records.record import CellPlan, CellRun, RequestRecord, read_lines
from tests.fakes.load_cell import a_cell


def a_record(index: int, t_end_ns: int | None) -> RequestRecord:
    return RequestRecord(
        cell=0,
        index=index,
        phase="measured",
        variant="a",
        t_sched_ns=index,
        t_end_ns=t_end_ns,
        max_tokens=1,
    )


def lines(*records: RequestRecord) -> bytes:
    outbox = Outbox(lambda record: None)
    for record in records:
        outbox.add(record)
    return outbox.report(0).lines


def test_a_cell_is_on_disk_before_its_records_and_its_records_before_its_end(tmp_path):
    files = RunFiles(tmp_path)
    keeper = Keeper(files)
    plan = CellPlan.of(a_cell(2), 5)
    keeper.begin(plan)
    assert list(read_lines(files.cells, CellPlan)) == [plan]
    keeper.keep(lines(a_record(0, 9)))
    assert list(read_lines(files.records, RequestRecord)) == [a_record(0, 9)]
    run = CellRun(
        cell=3, worker=0, n_records=1, t_end_ns=9, cpu_s=0.1, in_flight_ns=8, peak_in_flight=1
    )
    keeper.end(run)
    assert list(read_lines(files.runs, CellRun)) == [run]
    keeper.close()


def test_the_records_of_a_cell_are_its_own_in_the_order_in_which_they_were_over(tmp_path):
    keeper = Keeper(RunFiles(tmp_path))
    keeper.begin(CellPlan.of(a_cell(2), 0))
    keeper.keep(lines(a_record(0, 50), a_record(1, 40)))
    first = keeper.of_cell()
    keeper.begin(CellPlan.of(a_cell(2), 0))
    keeper.keep(lines(a_record(2, 60)))
    keeper.keep(lines(a_record(3, 30)))
    second = keeper.of_cell()
    keeper.close()
    assert [record.index for record in first] == [1, 0]
    assert [record.index for record in second] == [3, 2]
    assert (len(first), first[0].index, [r.index for r in first[1:]]) == (2, 1, [0])


def test_a_file_that_cannot_be_closed_holds_back_no_other(tmp_path):
    files = RunFiles(tmp_path)
    keeper = Keeper(files)
    keeper.begin(CellPlan.of(a_cell(2), 0))
    for file in (keeper._records, keeper._runs):
        file._file.close()
    with pytest.raises(ValueError, match="closed file"):
        keeper.close()
    assert keeper._cells._file.closed


def test_a_cell_without_records_has_none(tmp_path):
    keeper = Keeper(RunFiles(tmp_path))
    keeper.begin(CellPlan.of(a_cell(0), 0))
    keeper.close()
    assert list(keeper.of_cell()) == []
