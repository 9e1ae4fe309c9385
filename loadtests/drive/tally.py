"""Where the run is, from what the workers report; pure."""

from collections import deque

from loadtests.drive.messages import Report
from loadtests.plan.request import Cell
from loadtests.records.progress import Progress

LAST_TTFTS = 200


class Tally:
    """Counts of the run and of the current cell."""

    def __init__(self, n_workers: int, n_cells: int | None) -> None:
        self.phase = "waiting for workers"
        self.cells_done = 0
        self._n_workers = n_workers
        self._n_cells = n_cells
        self._cell: Cell | None = None
        self._cell_over = self._over = self._failed = 0
        self._in_flight: dict[str, int] = {}
        self._n_unreached = 0
        self._ttft_ms: deque[float] = deque(maxlen=LAST_TTFTS)

    def begin(self, cell: Cell) -> None:
        """`cell` is the current one from now on."""
        self._cell, self._cell_over = cell, 0

    def take(self, client_id: str, report: Report) -> int:
        """Count one worker's report; how many requests in a row have found no server by now.

        The workers' reports stand one after the other, as they came.
        """
        self._cell_over += report.n_over
        self._over += report.n_over
        self._failed += report.n_failed
        self._in_flight[client_id] = report.in_flight
        self._ttft_ms.extend(report.ttft_ms)
        before = 0 if report.found_server else self._n_unreached
        self._n_unreached = before + report.n_unreached
        return self._n_unreached

    def progress(self, t_ns: int) -> Progress:
        """Where the run is, `t_ns` after its start."""
        cell = self._cell
        ordered = sorted(self._ttft_ms)
        is_open = cell is not None and cell.concurrency is None
        return Progress(
            t_ns=t_ns,
            phase=self.phase,
            n_workers=self._n_workers,
            cells_done=self.cells_done,
            n_cells=self._n_cells,
            stage=cell.stage if cell else "",
            block=cell.block if cell else 0,
            variant=cell.variant if cell else "",
            rate_per_s=cell.rate_per_s if cell else None,
            concurrency=cell.concurrency if cell else None,
            cell_over=self._cell_over,
            cell_planned=len(cell.requests) if cell and is_open else 0,
            over=self._over,
            failed=self._failed,
            in_flight=sum(self._in_flight.values()),
            ttft_ms=(_rank(ordered, 50), _rank(ordered, 95)) if ordered else None,
        )


def _rank(ordered: list[float], percent: int) -> float:
    """Nearest rank: the ceil(p n)-th smallest."""
    return ordered[-(-percent * len(ordered) // 100) - 1]
