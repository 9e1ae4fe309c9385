"""Where cells come from: all planned before the run, or decided as it goes."""

from collections.abc import Sequence
from typing import Protocol

from loadtests.plan.cells import Planner
from loadtests.plan.request import Cell
from loadtests.plan.seeds import stream_of
from loadtests.records.record import RequestRecord

CellDone = tuple[Cell, Sequence[RequestRecord]]
"""A cell and its records, in the order in which they were over."""


class CellSource(Protocol):
    """Hands out cells in waves; the cells of a wave run one after the other."""

    n_cells: int | None
    """How many there will be; None where that depends on what is found."""

    def next_cells(self, done: Sequence[CellDone]) -> Sequence[Cell]:
        """The next wave, given the last one's records; empty at the end."""


class StageCells:
    """The cells of a campaign's stages, planned before the run.

    Blocks are the outer loop, so that drift of the machine meets every stage and variant. One wave
    is one stage in one block: all variants, `repeats` times, in random order.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        campaign = planner.campaign
        self._waves = iter(
            [(block, stage) for block in range(campaign.blocks) for stage in campaign.stages]
        )
        self._n_given = 0
        per_wave = len(campaign.variant_names()) * campaign.repeats
        self.n_cells: int | None = campaign.blocks * len(campaign.stages) * per_wave

    def next_cells(self, done: Sequence[CellDone]) -> Sequence[Cell]:
        """The next wave, whatever the last one gave. Raises ConfigError as `Planner.cell`."""
        wave = next(self._waves, None)
        if wave is None:
            return ()
        block, stage = wave
        campaign = self._planner.campaign
        order = [
            (repeat, variant)
            for repeat in range(campaign.repeats)
            for variant in campaign.variant_names()
        ]
        stream_of(campaign.seed, stage.name, block, "order").shuffle(order)
        first, self._n_given = self._n_given, self._n_given + len(order)
        return tuple(
            self._planner.cell(first + i, stage, block, repeat, variant)
            for i, (repeat, variant) in enumerate(order)
        )


def plan_cells(planner: Planner) -> StageCells:
    """The cells of a campaign with stages.

    Every stage is planned once here, so that a campaign which cannot be planned raises its
    ConfigError before anything is sent.
    """
    for stage in planner.campaign.stages:
        planner.requests(stage, 0)
    return StageCells(planner)
