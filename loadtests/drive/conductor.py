"""The master's side of a run: plans the cells, has the workers play them, keeps the records."""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import gevent

from loadtests.campaign import Campaign
from loadtests.drive import messages as say
from loadtests.drive.crew import Crew, RunEndedError
from loadtests.drive.keeper import Keeper
from loadtests.drive.shard import shards
from loadtests.drive.tally import Tally
from loadtests.plan.request import Cell, PlannedRequest
from loadtests.records.manifest import Ending, EndReason
from loadtests.records.record import CellPlan
from loadtests.source import CellDone, CellSource
from serve_app.domain.units import NS_PER_MS

START_LEAD_NS = 300 * NS_PER_MS
"""From the decision when a cell starts to its start: the news must reach every worker."""
BODIES_AT_ONCE = 50
Body = Callable[[PlannedRequest, str], bytes]
"""JSON of one request to one variant."""


class Conductor:
    """One run, from the first worker to the last record."""

    def __init__(
        self,
        campaign: Campaign,
        source: CellSource,
        body: Body,
        crew: Crew,
        keeper: Keeper,
        tally: Tally,
        epoch_ns: int,
        gather_s: float,
    ) -> None:
        self._campaign = campaign
        self._source = source
        self._body = body
        self._crew = crew
        self._keeper = keeper
        self._tally = tally
        self._epoch_ns = epoch_ns
        self._gather_s = gather_s

    def run(self, start_users: Callable[[], None]) -> Ending:
        """Play every cell; how it ended. `start_users` has Locust count a user for each worker.

        Whatever ends the run, every record that the workers can still give is on disk when this
        returns.
        """
        watching = gevent.spawn(self._crew.watch)
        early = _ended_by(partial(self._play, start_users))
        self._tally.phase = "stopping"
        last: list[Callable[[], None]] = []
        if early is not None:
            last.append(partial(self._crew.stop, self._take))
        last += [partial(self._crew.tell_all, say.Leave()), self._keeper.close]
        for step in last:  # each of them, also when a disk is full; the first failure is told
            failure = _ended_by(step)
            early = early or failure
        watching.kill()
        return early or Ending(reason=EndReason.COMPLETE)

    def _play(self, start_users: Callable[[], None]) -> None:
        self._crew.gather(self._gather_s)
        self._tally.phase = "preparing"
        start_users()
        target = self._campaign.target
        self._crew.tell_all(say.Join(target.base_url, target.api_key_env is not None))
        done: list[CellDone] = []
        while cells := self._source.next_cells(done):
            done = [self._play_cell(cell) for cell in cells]

    def _play_cell(self, cell: Cell) -> CellDone:
        campaign, members = self._campaign, self._crew.members
        self._tally.phase = "preparing"
        self._tally.begin(cell)
        parts = shards(
            cell, self._bodies(cell), len(members), campaign.in_flight_cap, campaign.timeout_s
        )
        for member, part in zip(members, parts, strict=True):
            self._crew.tell(member, say.Prepare(part))
        self._crew.each(say.Ready, self._take)
        self._crew.set_clocks()
        start_ns = time.monotonic_ns() + START_LEAD_NS
        self._keeper.begin(CellPlan.of(cell, start_ns - self._epoch_ns))
        for member in members:
            start = say.Start(start_ns + member.offset_ns, member.clock_error_ns)
            self._crew.tell(member, start)
        self._tally.phase = "running"
        self._crew.each(say.CellOver, self._take)
        self._tally.cells_done += 1
        return cell, self._keeper.of_cell()

    def _bodies(self, cell: Cell) -> list[bytes]:
        bodies = []
        for nth, request in enumerate(cell.requests):
            bodies.append(self._body(request, cell.variant))
            if nth % BODIES_AT_ONCE == 0:
                gevent.sleep(0)  # heartbeats and signals get their turn
        return bodies

    def _take(self, client_id: str, message: say.ToMaster) -> None:
        if isinstance(message, say.Report):
            self._keeper.keep(message.lines)
            n_unreached = self._tally.take(client_id, message)
            if n_unreached >= self._campaign.give_up_after:
                detail = f"{n_unreached} requests in a row found no server"
                self._crew.end(EndReason.SERVER_GONE, f"{self._campaign.target.base_url}: {detail}")
        elif isinstance(message, say.CellOver):
            self._keeper.end(message.run)


def _ended_by(step: Callable[[], None]) -> Ending | None:
    """How `step` ends the run; None if it does not."""
    try:
        step()
    except RunEndedError as ended:
        return ended.ending
    except Exception as error:
        with suppress(OSError):  # the log may be on the disk that is full
            traceback.print_exc()
        return Ending(reason=EndReason.FAILED, detail=f"{type(error).__name__}: {error}")
    return None
