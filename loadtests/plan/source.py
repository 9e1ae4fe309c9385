"""Where cells come from: all planned before the run, or decided as it goes."""

from collections.abc import Sequence
from typing import Protocol

from loadtests.plan.request import Cell
from loadtests.records.record import RequestRecord

CellDone = tuple[Cell, Sequence[RequestRecord]]
"""A cell and its records, in the order in which they were over."""


class CellSource(Protocol):
    """Hands out cells in waves; the cells of a wave run one after the other."""

    n_cells: int | None
    """How many there will be; None where that depends on what is found."""

    def next_cells(self, done: Sequence[CellDone]) -> Sequence[Cell]:
        """The next wave, given the last one's records; empty at the end."""
