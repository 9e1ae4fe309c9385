"""From an exchange to a record: what came back, and whether it counts as an answer."""

from dataclasses import dataclass
from typing import Any

from loadtests.drive.client import Exchange
from loadtests.drive.sse import StreamReading, read_stream
from loadtests.plan.request import Phase
from loadtests.records.record import ErrorClass, RequestRecord

_DETAIL_CHARS = 200
_BY_STATUS = {429: ErrorClass.RATE_LIMITED, 503: ErrorClass.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A planned request with its place in the campaign. Its time counts from its cell's start."""

    cell: int
    index: int
    worker: int
    variant: str
    phase: Phase
    t_sched_ns: int
    max_tokens: int
    kind: str = ""
    session: str | None = None
    planned_input_tokens: int | None = None

    def record(self, exchange: Exchange, start_ns: int) -> RequestRecord:
        """The record of a request that was sent, in a cell that began at `start_ns`.

        Reads the whole stream: run it when no arrival is due.
        """
        is_stream = exchange.status is not None and exchange.status < 400
        reading = read_stream(exchange.pieces) if is_stream else StreamReading()
        error, detail = failure(exchange, reading, self.variant)
        times = reading.token_ns
        return self._made(
            served_variant=exchange.headers.get("x-variant"),
            route_reason=exchange.headers.get("x-route-reason"),
            t_send_ns=exchange.t_send_ns - start_ns,
            t_first_ns=times[0] - start_ns if times else None,
            t_last_ns=times[-1] - start_ns if times else None,
            t_end_ns=exchange.t_end_ns - start_ns,
            event_us=tuple((t - times[0]) // 1000 for t in times),
            status=exchange.status,
            error=error,
            detail=detail[:_DETAIL_CHARS] if detail else None,
            finish_reason=reading.finish_reason,
            prompt_tokens=reading.prompt_tokens,
            output_tokens=reading.output_tokens,
        )

    def unreadable(self, exchange: Exchange, start_ns: int, why: Exception) -> RequestRecord:
        """The record of an answer that `record` cannot read, because of `why`."""
        return self._made(
            t_send_ns=exchange.t_send_ns - start_ns,
            t_end_ns=exchange.t_end_ns - start_ns,
            status=exchange.status,
            error=ErrorClass.MALFORMED,
            detail=f"{type(why).__name__}: {why}"[:_DETAIL_CHARS],
        )

    def unanswered(self, error: ErrorClass, t_send_ns: int | None, t_end_ns: int) -> RequestRecord:
        """The record of a request that was never sent, or was given up; stamps as `t_sched_ns`."""
        return self._made(t_send_ns=t_send_ns, t_end_ns=t_end_ns, error=error)

    def _made(self, **found: Any) -> RequestRecord:
        """What was planned, and what was `found`."""
        return RequestRecord(
            cell=self.cell,
            index=self.index,
            worker=self.worker,
            phase=self.phase,
            variant=self.variant,
            kind=self.kind,
            session=self.session,
            t_sched_ns=self.t_sched_ns,
            max_tokens=self.max_tokens,
            planned_input_tokens=self.planned_input_tokens,
            **found,
        )


def failure(
    exchange: Exchange, reading: StreamReading, variant: str | None
) -> tuple[ErrorClass | None, str | None]:
    """The first thing that is wrong, transport before content; `variant` None pins nothing."""
    served = exchange.headers.get("x-variant")
    status = exchange.status
    if status is not None and status >= 400:
        by_class = ErrorClass.HTTP_5XX if status >= 500 else ErrorClass.HTTP_4XX
        return _BY_STATUS.get(status, by_class), exchange.body.decode(errors="replace")
    if exchange.error is not None:
        return exchange.error, exchange.detail
    if reading.error is not None:
        return ErrorClass.STREAM_ERROR, reading.error
    if reading.malformed is not None:
        return ErrorClass.MALFORMED, reading.malformed
    if not reading.is_complete:
        return ErrorClass.TRUNCATED, "the stream ended without [DONE] or finish_reason and usage"
    if not reading.token_ns:
        return ErrorClass.EMPTY, f"finish_reason {reading.finish_reason}"
    if None not in (served, variant) and served != variant:
        return ErrorClass.WRONG_VARIANT, f"pinned {variant}, served by {served}"
    if reading.output_tokens is None:
        return ErrorClass.NO_USAGE, "no usage.completion_tokens, for which we asked"
    return None, None
