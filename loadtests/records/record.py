"""What is known of each request when it is over: raw stamps, one JSON line each.

Stamps (`_ns`) count from the start of the request's cell, on the monotonic clock of the load
process that sent it: shards of several processes merge by being put together. Every latency is
derived later, in `loadtests.analyse`, and nowhere else.
"""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from loadtests.plan.request import Cell, Phase

T = TypeVar("T")


class ErrorClass(StrEnum):
    """Why a request failed."""

    REFUSED_BY_CLIENT = "refused_by_client"  # in-flight cap reached: never sent
    UNFINISHED = "unfinished"  # the run was stopped first
    CONNECT = "connect"  # no connection
    CLOSED = "closed"  # connection ended before a response
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"  # 429
    UNAVAILABLE = "unavailable"  # 503
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    TRUNCATED = "truncated"  # stream ended without its end mark
    STREAM_ERROR = "stream_error"  # the server reported an error inside the stream
    MALFORMED = "malformed"  # not HTTP, not SSE, or not the JSON of the API
    EMPTY = "empty"  # a complete answer without one token
    WRONG_VARIANT = "wrong_variant"  # another variant answered than the pinned one
    NO_USAGE = "no_usage"  # a complete answer that says no token count, so its TPOT is unknown


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One planned request. None means that it never came to that."""

    cell: int
    index: int
    """Position in the cell's plan; in a closed loop, the number of the request in the cell."""
    worker: int = 0
    """The load process that sent it."""
    phase: Phase
    variant: str
    """The pinned variant."""
    kind: str = ""
    """Traffic class, of a mixture."""
    session: str | None = None
    served_variant: str | None = None
    """`x-variant` of the answer."""
    route_reason: str | None = None
    """`x-route-reason` of the answer."""
    t_sched_ns: int
    """When the plan says to send it; in a closed loop, when it was sent."""
    t_send_ns: int | None = None
    """Before connect and write."""
    t_first_ns: int | None = None
    """Receipt of the first event with non-empty content, reasoning or tool call."""
    t_last_ns: int | None = None
    """Receipt of the last such event."""
    t_end_ns: int | None = None
    """When the exchange was over for the client."""
    event_us: tuple[int, ...] = ()
    """Receipt of every such event, microseconds after the first."""
    status: int | None = None
    error: ErrorClass | None = None
    detail: str | None = None
    finish_reason: str | None = None
    max_tokens: int
    planned_input_tokens: int | None = None
    prompt_tokens: int | None = None
    """By the server's count, as is `output_tokens`."""
    output_tokens: int | None = None
    """`usage.completion_tokens`."""


class CellPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One cell as it was decided: written before it starts, so that a report needs no plan."""

    index: int
    stage: str
    block: int
    repeat: int
    variant: str
    rate_per_s: float | None
    concurrency: int | None
    window_ns: tuple[int, int]
    end_ns: int
    n_measured: int
    """Requests planned in the measured window; 0 in a closed loop, which plans none."""
    start_ns: int
    """Start of the cell, from the start of the run: for time lines, not for intervals."""

    @classmethod
    def of(cls, cell: Cell, start_ns: int) -> "CellPlan":
        """The plan of `cell`, without its requests."""
        is_open = cell.concurrency is None
        return cls(
            index=cell.index,
            stage=cell.stage,
            block=cell.block,
            repeat=cell.repeat,
            variant=cell.variant,
            rate_per_s=cell.rate_per_s,
            concurrency=cell.concurrency,
            window_ns=cell.window_ns,
            end_ns=cell.end_ns,
            n_measured=sum(r.phase == "measured" for r in cell.requests) if is_open else 0,
            start_ns=start_ns,
        )

    @property
    def window_s(self) -> float:
        """Length of the measured window in seconds."""
        return (self.window_ns[1] - self.window_ns[0]) / 1_000_000_000


class CellRun(msgspec.Struct, frozen=True, kw_only=True):
    """How one cell went for one load process, counted by its pacer apart from the records.

    A cell is whole when every worker of the run has one, with as many records as it says.
    """

    cell: int
    worker: int
    n_records: int
    t_end_ns: int
    """When the worker's last request was over, from the start of the cell."""
    cpu_s: float
    """CPU time of the load process from the start to the planned end of the cell: what is only in
    flight then would dilute it. Its share of a core is `cpu_s` over the plan's `end_ns`."""
    in_flight_ns: int
    """Integral of the number of open requests over the cell, in request-nanoseconds."""
    peak_in_flight: int
    clock_error_ns: int = 0
    """Half the shortest round trip by which this worker's clock was set; 0 in the one process."""


class JsonlWriter:
    """Appends one JSON line per object. A line is written whole, so a stop leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("ab")
        self._encoder = msgspec.json.Encoder()

    def write(self, item: msgspec.Struct) -> None:
        """Append `item`; it reaches the file at the next `flush`."""
        self._file.write(self._encoder.encode(item) + b"\n")

    def write_lines(self, lines: bytes) -> None:
        """Append whole lines that were encoded elsewhere."""
        self._file.write(lines)

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """Objects of a JSONL file; none if there is no file. A last line cut off is left out."""
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decoder.decode(line)
