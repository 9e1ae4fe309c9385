"""Open-loop load inside Locust: one pacer user that follows a plan, one greenlet per arrival.

Locust's own users wait for their answer before they send again, so a server that stands still
is asked less and looks better (coordinated omission). Here arrivals come from the plan alone.
`python -m loadtests.drive.pacer DIR` runs the campaign of `DIR/run.json`; `loadtests.run` starts it.
"""

import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.event import Event
from gevent.pool import Group
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.campaign import Campaign
from loadtests.drive.client import HttpTarget, auth_headers
from loadtests.records.manifest import RunFiles
from loadtests.drive.outcome import Arrival
from loadtests.plan.prompts import chat_body, load_prompts
from loadtests.records.record import CellRun, ErrorClass, JsonlWriter, Progress, RequestRecord
from loadtests.plan.cells import Cell, plan_cells
from serve_app.domain.units import NS_PER_MS, NS_PER_S

LEAD_NS = 20_000_000
"""Time between the start of a cell's clock and its first arrival, for the first greenlets."""
DRAIN_GRACE_S = 5.0
PROGRESS_S = 0.2
STOPPED_EXIT = 3
CHAT_PATH = "/v1/chat/completions"


class CellPacer:
    """Runs cells one after another and hands each record to `on_record` when it is over."""

    def __init__(
        self,
        campaign: Campaign,
        prompts: Sequence[str],
        target: HttpTarget,
        on_record: Callable[[Cell, RequestRecord], None],
    ) -> None:
        self.in_flight = 0
        self._campaign = campaign
        self._prompts = prompts
        self._target = target
        self._on_record = on_record
        self._group = Group()
        self._peak = 0
        self._area_ns = 0
        self._changed_ns = 0

    def run(self, cell: Cell) -> CellRun:
        """Send the cell's requests at their times and wait until all are over."""
        requests = [self._request(cell, i) for i in range(len(cell.requests))]
        gc.collect()
        gc.freeze()  # a collection during the cell would stop every stream at once
        start_ns = time.monotonic_ns() + LEAD_NS
        cpu_start_s = time.process_time()
        self._peak, self._area_ns, self._changed_ns = 0, 0, start_ns
        for index, planned in enumerate(cell.requests):
            due_ns = start_ns + planned.offset_ns
            _sleep_until(due_ns)
            arrival = Arrival(cell.index, index, cell.variant, due_ns, planned)
            if self.in_flight >= self._campaign.in_flight_cap:
                refused = ErrorClass.REFUSED_BY_CLIENT
                self._on_record(cell, arrival.unanswered(refused, None, time.monotonic_ns()))
            else:
                self._group.spawn(self._send, cell, arrival, requests[index])
                self._count(+1)
        _sleep_until(start_ns + cell.end_ns)
        self._group.join(self._campaign.timeout_s + DRAIN_GRACE_S)
        self.abandon()
        return CellRun(
            cell=cell.index,
            t_start_ns=start_ns,
            t_end_ns=time.monotonic_ns(),
            cpu_s=time.process_time() - cpu_start_s,
            in_flight_ns=self._area_ns,
            peak_in_flight=self._peak,
        )

    def abandon(self) -> None:
        """Give up what is still in flight; each such request is recorded as unfinished."""
        self._group.kill()

    def _request(self, cell: Cell, index: int) -> bytes:
        planned = cell.requests[index]
        model = f"{self._campaign.target.model}@{cell.variant}"
        prompt = self._prompts[planned.prompt]
        body = chat_body(self._campaign.workload, model, prompt, planned.max_tokens)
        return self._target.request("POST", CHAT_PATH, body)

    def _send(self, cell: Cell, arrival: Arrival, request: bytes) -> None:
        t_send_ns = time.monotonic_ns()
        try:
            exchange = self._target.exchange(request, self._campaign.timeout_s)
        except gevent.GreenletExit:
            now_ns = time.monotonic_ns()
            record = arrival.unanswered(ErrorClass.UNFINISHED, t_send_ns, now_ns)
        else:
            record = arrival.record(exchange)
        self._count(-1)
        self._on_record(cell, record)

    def _count(self, change: int) -> None:
        now_ns = time.monotonic_ns()
        self._area_ns += self.in_flight * (now_ns - self._changed_ns)
        self._changed_ns = now_ns
        self.in_flight += change
        self._peak = max(self._peak, self.in_flight)


class CampaignLoad:
    """One run of a campaign: reads the manifest, writes records, cells and progress."""

    def __init__(self, files: RunFiles, environment: Environment) -> None:
        manifest = files.read_manifest()
        self.campaign = manifest.parsed()
        prompts = load_prompts(self.campaign.workload.prompts)
        self.cells = plan_cells(self.campaign, len(prompts))
        self.finished = Event()
        self.is_stopped = False
        self.error: BaseException | None = None
        self._environment = environment
        self._records = JsonlWriter(files.records)
        self._runs = JsonlWriter(files.cells)
        self._over = 0
        self._failed = 0
        self._cell = 0
        where = self.campaign.target
        target = HttpTarget(where.base_url, auth_headers(where.api_key_env))
        self._pacer = CellPacer(self.campaign, prompts, target, self._take)

    def run(self) -> None:
        """Run every cell; sets `finished` at the end, however that comes."""
        try:
            for cell in self.cells:
                self._cell = cell.index
                self._runs.write(self._pacer.run(cell))
                self._runs.flush()
        except gevent.GreenletExit:
            self.is_stopped = True
        except Exception as error:
            self.error = error
        finally:
            self._pacer.abandon()
            self._records.close()
            self._runs.close()
            self.finished.set()

    def report_progress(self) -> None:
        """Write a line of progress to stdout and flush the records, until killed."""
        while True:
            self._records.flush()
            sys.stdout.write(msgspec.json.encode(self.progress()).decode() + "\n")
            sys.stdout.flush()
            gevent.sleep(PROGRESS_S)

    def progress(self) -> Progress:
        """Where the run is now."""
        return Progress(
            cell=self._cell,
            over=self._over,
            failed=self._failed,
            in_flight=self._pacer.in_flight,
        )

    def _take(self, cell: Cell, record: RequestRecord) -> None:
        self._records.write(record)
        self._over += 1
        self._failed += record.error is not None
        end_ns = record.t_last_ns or record.t_end_ns or record.t_sched_ns
        fire_request(
            self._environment,
            f"{cell.stage} {cell.variant}",
            (end_ns - record.t_sched_ns) / NS_PER_MS,
            record.output_tokens,
            record.error,
        )


def fire_request(
    environment: Environment,
    name: str,
    response_time_ms: float,
    n_tokens: int | None,
    error: ErrorClass | None,
) -> None:
    """Tell Locust of one request, once: its statistics and UI show it, our report does not."""
    environment.events.request.fire(
        request_type="POST",
        name=name,
        response_time=response_time_ms,
        response_length=n_tokens or 0,
        exception=None if error is None else RuntimeError(str(error)),
        context={},
    )


class PacerUser(User):  # type: ignore[misc]
    """The one Locust user of a campaign: it is the plan's clock, not a person."""

    load: CampaignLoad

    def __init__(self, environment: Environment, **kwargs: Any) -> None:
        super().__init__(environment, **kwargs)

    @task  # type: ignore[untyped-decorator]
    def follow_plan(self) -> None:
        """Run the campaign once, then leave."""
        self.load.run()
        raise StopUser


def _sleep_until(due_ns: int) -> None:
    wait_ns = due_ns - time.monotonic_ns()
    if wait_ns > 0:
        gevent.sleep(wait_ns / NS_PER_S)


def main(folder: Path) -> int:
    """Run the campaign of `folder`; 0 when it is complete, 3 when it was stopped by SIGTERM."""
    environment = Environment(user_classes=[PacerUser], events=events)
    load = CampaignLoad(RunFiles(folder), environment)
    PacerUser.load = load
    runner = environment.create_local_runner()
    gevent.signal_handler(signal.SIGTERM, runner.stop)
    progress = gevent.spawn(load.report_progress)
    runner.start(1, spawn_rate=1)
    load.finished.wait()
    progress.kill()
    runner.quit()
    if load.error is not None:
        raise load.error
    return STOPPED_EXIT if load.is_stopped else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
