"""Which cells of a run are whole, and what is wrong with the others."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from loadtests.analyse.metrics import meets
from loadtests.campaign import Slo
from loadtests.records.record import CellPlan, CellRun, ErrorClass, RequestRecord


@dataclass(frozen=True)
class WholeCell:
    """A cell that ran to its end, with everything that was kept of it."""

    plan: CellPlan
    runs: tuple[CellRun, ...]
    """One per worker."""
    records: tuple[RequestRecord, ...]
    """Of every phase and worker, in the order of `t_sched`."""

    @cached_property
    def measured(self) -> tuple[RequestRecord, ...]:
        """Records of the requests that were planned (in a closed loop: sent) in the window."""
        return tuple(r for r in self.records if r.phase == "measured")

    @property
    def n_planned(self) -> int:
        """Requests of the window, those without a record included."""
        return max(self.plan.n_measured, len(self.measured))

    def passes(self, slo: Slo) -> list[bool]:
        """For each planned request of the window whether it met the SLO; no record: it did not."""
        met = [meets(r, slo) for r in self.measured]
        return met + [False] * (self.n_planned - len(met))

    def passes_sent(self, slo: Slo) -> list[bool]:
        """`passes`, of the requests alone that the client did not refuse to send."""
        return [meets(r, slo) for r in self.measured if r.error != ErrorClass.REFUSED_BY_CLIENT]


def whole_cells(
    plans: Sequence[CellPlan],
    records: Iterable[RequestRecord],
    runs: Sequence[CellRun],
    n_workers: int,
) -> tuple[WholeCell, ...]:
    """The cells of which every worker's word and all of its records are there, in run order."""
    records_of: dict[int, list[RequestRecord]] = defaultdict(list)
    for record in records:
        records_of[record.cell].append(record)
    runs_of: dict[int, dict[int, CellRun]] = defaultdict(dict)
    for run in runs:
        runs_of[run.cell][run.worker] = run
    found = []
    for plan in sorted(plans, key=lambda each: each.index):
        of_worker = runs_of[plan.index]
        counts = Counter(record.worker for record in records_of[plan.index])
        said = {worker: run.n_records for worker, run in of_worker.items()}
        if said.keys() == set(range(n_workers)) and counts == Counter(said):
            ordered = sorted(records_of[plan.index], key=lambda r: (r.t_sched_ns, r.index))
            found.append(WholeCell(plan, tuple(of_worker.values()), tuple(ordered)))
    return tuple(found)


def shard_problems(
    plans: Sequence[CellPlan],
    records: Iterable[RequestRecord],
    runs: Sequence[CellRun],
    n_workers: int,
    *,
    is_complete: bool,
) -> tuple[str, ...]:
    """What is wrong with the shards: records lost or double, workers that say nothing.

    A cell that no worker has ended is no problem of a run that was stopped, and neither is one
    that a part of them has; after a complete run (`is_complete`) both are.
    """
    plan_of = {plan.index: plan for plan in plans}
    kept = list(records)
    problems = list(_unknown_and_double(plan_of, kept, runs))
    counts = Counter((record.cell, record.worker) for record in kept)
    measured = Counter(record.cell for record in kept if record.phase == "measured")
    said = {(run.cell, run.worker): run.n_records for run in runs}
    for index, plan in sorted(plan_of.items()):
        silent = [worker for worker in range(n_workers) if (index, worker) not in said]
        if silent and is_complete:
            problems.append(f"cell {index}: no word from worker {', '.join(map(str, silent))}")
        for worker in range(n_workers):
            want, have = said.get((index, worker)), counts[index, worker]
            if want is not None and have < want:
                problems.append(f"cell {index}, worker {worker}: lost records, {have} of {want}")
            elif want is not None and have > want:
                problems.append(
                    f"cell {index}, worker {worker}: {have} records for {want} requests"
                )
        if not silent and plan.concurrency is None and measured[index] != plan.n_measured:
            problems.append(
                f"cell {index}: {measured[index]} records of {plan.n_measured} planned requests"
            )
    return tuple(problems)


def _unknown_and_double(
    plan_of: dict[int, CellPlan], records: Sequence[RequestRecord], runs: Sequence[CellRun]
) -> Iterator[str]:
    """Records without a plan, and what is there more than once.

    In a closed loop each worker numbers its own requests.
    """
    for cell in sorted({record.cell for record in records} - plan_of.keys()):
        yield f"cell {cell}: records, but no plan"
    numbers = Counter(
        (r.cell, r.worker if plan_of[r.cell].concurrency is not None else 0, r.index)
        for r in records
        if r.cell in plan_of
    )
    double = Counter(cell for (cell, _, _), n in numbers.items() if n > 1)
    for cell, n in sorted(double.items()):
        yield f"cell {cell}: {n} requests with more than one record"
    for (cell, worker), n in sorted(Counter((run.cell, run.worker) for run in runs).items()):
        if n > 1:
            yield f"cell {cell}: worker {worker} ended it {n} times"
