"""The search for the highest rate at which the SLO holds, as a source of cells."""

from collections.abc import Sequence

from loadtests.analyse.saturation import Evidence, evidence_of, next_rate, probes_of
from loadtests.analyse.whole import WholeCell
from loadtests.campaign import LoadStage, Search
from loadtests.campaign.stages import ConstantStage, GammaStage, PoissonStage
from loadtests.plan.cells import Planner
from loadtests.plan.request import Cell
from loadtests.plan.seeds import stream_of
from loadtests.records.record import CellPlan
from loadtests.source import CellDone
from serve_app.domain.errors import ConfigError


class SearchCells:
    """Probes of every variant until each has its bracket.

    Each wave holds one cell of every variant that is still searching, in random order, so that
    drift of the machine meets all. Variants that try the same rate for the same time get the same
    requests: the n-th cell at a rate is its block n.
    """

    n_cells: int | None = None

    def __init__(self, planner: Planner) -> None:
        """Raises ConfigError if the campaign has no search."""
        campaign = planner.campaign
        if campaign.search is None or campaign.slo is None:
            raise ConfigError("the campaign has no search: run its stages")
        self._planner, self._search, self._slo = planner, campaign.search, campaign.slo
        self._evidence: dict[str, dict[float, list[Evidence]]] = {
            variant: {} for variant in campaign.variant_names()
        }
        self._n_waves = self._n_given = 0

    def next_cells(self, done: Sequence[CellDone]) -> Sequence[Cell]:
        """The next wave, given the last one's records; empty when every variant is done."""
        for cell, records in done:
            ordered = sorted(records, key=lambda r: (r.t_sched_ns, r.index))
            whole = WholeCell(CellPlan.of(cell, 0), (), tuple(ordered))
            of_rate = self._evidence[cell.variant].setdefault(cell.rate_per_s or 0.0, [])
            of_rate.append(evidence_of(self._slo, self._planner.campaign.validity, whole))
        wave = [
            (variant, rate)
            for variant, evidence in self._evidence.items()
            if (rate := self._next_rate(evidence)) is not None
        ]
        seed = self._planner.campaign.seed
        stream_of(seed, "search", self._n_waves, "order").shuffle(wave)
        first = self._n_given
        self._n_waves, self._n_given = self._n_waves + 1, first + len(wave)
        return tuple(self._cell(first + i, variant, rate) for i, (variant, rate) in enumerate(wave))

    def _next_rate(self, evidence: dict[float, list[Evidence]]) -> float | None:
        target = self._slo.attainment
        return next_rate(self._search, probes_of(self._search, evidence, target), target)

    def _cell(self, index: int, variant: str, rate: float) -> Cell:
        block = len(self._evidence[variant].get(rate, ()))
        return self._planner.cell(index, stage_of(self._search, rate), block, 0, variant)


def stage_of(search: Search, rate_per_s: float) -> LoadStage:
    """The stage of a probe: `12.5rps`."""
    name = f"{rate_per_s:.4g}rps".replace("+", "")  # 1e+04 is no stage name
    if search.kind == "gamma":
        return GammaStage(
            name=name,
            kind="gamma",
            duration_s=search.duration_s,
            rate_per_s=rate_per_s,
            burstiness=search.burstiness,
        )
    if search.kind == "constant":
        return ConstantStage(
            name=name, kind="constant", duration_s=search.duration_s, rate_per_s=rate_per_s
        )
    return PoissonStage(
        name=name, kind="poisson", duration_s=search.duration_s, rate_per_s=rate_per_s
    )
