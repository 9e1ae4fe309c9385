"""What is known of each request when it is over: raw stamps, one JSON line each.

Stamps (`_ns`) are of one process's monotonic clock: only differences mean anything. Every
latency is derived later, in `stats` and `summary`, and nowhere else.
"""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from loadtests.schedule import Phase

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


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One planned request. None means that it never came to that."""

    cell: int
    index: int
    """Position in the cell's plan."""
    phase: Phase
    variant: str
    """The pinned variant."""
    served_variant: str | None = None
    """`x-variant` of the answer."""
    route_reason: str | None = None
    """`x-route-reason` of the answer."""
    t_sched_ns: int
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
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    """`usage.completion_tokens`, by the server's count."""


class CellRun(msgspec.Struct, frozen=True, kw_only=True):
    """How one cell went for the client, counted by the pacer apart from the records."""

    cell: int
    t_start_ns: int
    t_end_ns: int
    """When the last request was over."""
    cpu_s: float
    """CPU time of the load process from start to end."""
    in_flight_ns: int
    """Integral of the number of open requests over the cell, in request-nanoseconds."""
    peak_in_flight: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the load process says about itself while it runs."""

    cell: int
    over: int
    """Requests of all cells that are over."""
    failed: int
    in_flight: int


class JsonlWriter:
    """Appends one JSON line per object. A line is written whole, so a stop leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("ab")
        self._encoder = msgspec.json.Encoder()

    def write(self, item: msgspec.Struct) -> None:
        """Append `item`; it reaches the file at the next `flush`."""
        self._file.write(self._encoder.encode(item) + b"\n")

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_records(path: Path) -> Iterator[RequestRecord]:
    """Records of a file. A last line that was cut off is left out."""
    yield from _read(path, msgspec.json.Decoder(RequestRecord))


def read_cell_runs(path: Path) -> Iterator[CellRun]:
    """Cell runs of a file. A last line that was cut off is left out."""
    yield from _read(path, msgspec.json.Decoder(CellRun))


def _read(path: Path, decoder: "msgspec.json.Decoder[T]") -> Iterator[T]:
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decoder.decode(line)
