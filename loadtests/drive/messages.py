"""What the conductor and its players say to each other, over Locust's own connection."""

import msgspec

from loadtests.plan.request import Cell
from loadtests.records.record import CellRun

TO_MASTER = "quantile_to_master"
TO_WORKER = "quantile_to_worker"
"""Locust's names for the two directions: in one process, both end at the same runner."""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's part of a cell."""

    cell: Cell
    """With the requests and the concurrency of this worker alone."""
    bodies: tuple[bytes, ...]
    """JSON of each request: workers need no files."""
    worker: int
    n_workers: int
    in_flight_cap: int
    timeout_s: float

    def index(self, nth: int) -> int:
        """Position in the whole cell of this worker's `nth` request."""
        return self.worker + nth * self.n_workers


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answer with your clock."""


class Join(msgspec.Struct, frozen=True, tag=True):
    """You are one of the run's workers, and this is where its requests go."""

    base_url: str
    needs_key: bool
    """Whether they carry an API key. Which one is the worker's to say: anybody may be a master."""


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Make the bytes of these requests, and say Ready."""

    shard: Shard


class Start(msgspec.Struct, frozen=True, tag=True):
    """Play what you prepared from this instant of your own clock on."""

    start_ns: int
    clock_error_ns: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Give up what is in flight, hand over all records, and say Stopped."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """The run is over, or has no place for you."""


ToWorker = Ping | Join | Prepare | Start | Stop | Leave


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A worker is there."""

    host: str
    pid: int


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The worker's monotonic clock when the ping came."""

    t_ns: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The prepared requests can start."""


class Report(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Records since the last report, and what they add up to."""

    lines: bytes
    """Whole JSON lines."""
    n_over: int
    n_failed: int
    in_flight: int
    """Open requests now."""
    found_server: bool
    """Whether any of them found the server."""
    n_unreached: int
    """How many found no server since one last did."""
    ttft_ms: tuple[float, ...]
    """TTFT_user of those that succeeded."""


class CellOver(msgspec.Struct, frozen=True, tag=True):
    """Every record of the cell has been reported."""

    run: CellRun


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """Every record has been reported, and nothing is in flight."""


class Trouble(msgspec.Struct, frozen=True, tag=True):
    """An error of ours."""

    detail: str


ToMaster = Hello | Pong | Ready | Report | CellOver | Stopped | Trouble
