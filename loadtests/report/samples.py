"""Values of single requests, for figures; every latency by the formula of `analyse.metrics`."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.analyse.metrics import LATENCIES
from loadtests.analyse.whole import WholeCell
from loadtests.records.record import RequestRecord
from loadtests.report.result import RawRun
from serve_app.domain.units import NS_PER_S

MAX_FAILURES = 20
MAX_DETAIL = 160


@dataclass(frozen=True)
class Failure:
    """Failed measured requests of one stage and variant that were told the same."""

    stage: str
    variant: str
    error: str
    detail: str
    n: int


class Samples:
    """What figures draw of a run, request by request."""

    def __init__(self, run: RawRun) -> None:
        self._run = run
        self._whole: dict[tuple[str, str], list[WholeCell]] = defaultdict(list)
        for cell in run.whole:
            self._whole[cell.plan.stage, cell.plan.variant].append(cell)
        self._start_ns = {cell.index: cell.start_ns for cell in run.cells}

    def latencies(self, stage: str, variant: str, metric: str) -> Sequence[float]:
        """Of the successful measured requests of whole cells, in ms, in run order."""
        of = LATENCIES[metric].of
        records = (r for cell in self._whole[stage, variant] for r in cell.measured)
        values = (of(r) for r in records if r.error is None)
        return [value for value in values if value is not None]

    def timeline(self) -> list[tuple[float, float, str]]:
        """Planned send time in seconds of the run, TTFT in ms, variant: of every success."""
        of = LATENCIES["ttft_user_ms"].of
        points = []
        for record in self._run.records:
            value = None if record.error is not None else of(record)
            at_s = self._at_s(record)
            if value is not None and at_s is not None:
                points.append((at_s, value, record.variant))
        return points

    def failures_per_s(self) -> dict[int, int]:
        """Failed requests by the second of the run in which they were planned."""
        times = (self._at_s(r) for r in self._run.records if r.error is not None)
        return dict(Counter(int(at_s) for at_s in times if at_s is not None))

    def failures(self) -> tuple[Failure, ...]:
        """The most frequent failures of whole cells, with the start of their detail."""
        found = Counter(
            (*row, str(record.error), (record.detail or "-")[:MAX_DETAIL])
            for row, cells in self._whole.items()
            for cell in cells
            for record in cell.measured
            if record.error is not None
        )
        return tuple(Failure(*what, n=n) for what, n in found.most_common(MAX_FAILURES))

    def _at_s(self, record: RequestRecord) -> float | None:
        """None for a record without a plan."""
        start_ns = self._start_ns.get(record.cell)
        return None if start_ns is None else (start_ns + record.t_sched_ns) / NS_PER_S
