"""Pass an answer's bytes on to the client, and end what fails so that the client notices."""

import asyncio
from collections.abc import Callable

from serve_app.domain.traffic import RouteReason
from serve_app.engines.engine import Send
from serve_app.serving.http import (
    OWN_PREFIX,
    REASON_HEADER,
    REQUEST_ID_HEADER,
    VARIANT_HEADER,
    Headers,
    header,
)
from serve_app.serving.limits import AnswerLimit, Ending
from serve_app.serving.relay import HOP_BY_HOP, Answer
from serve_app.serving.short_way import short_way
from serve_app.serving.sse import EVENT_ENDS, WholeEvents, error_event, is_stream
from serve_app.serving.upstream import Sink, Taking, UpstreamTruncatedError

# What the router's own server adds, or the router itself.
_NOT_PASSED_BACK = HOP_BY_HOP | {
    b"date",
    b"server",
    REQUEST_ID_HEADER,
    VARIANT_HEADER,
    REASON_HEADER,
}
_LAST_WORD_S = 5.0
"""How long a client that does not read may hold up its stream's error event."""
_SAYS = {
    Ending.BROKE_OFF: ("stream_broken", "variant {!r} broke off in the middle of the answer"),
    Ending.SILENT: ("stream_idle", "variant {!r} said nothing for too long in the middle"),
    Ending.DEADLINE: ("deadline_exceeded", "the request's time is up, variant {!r} was stopped"),
    Ending.STOPPED: ("router_stopping", "the router stops, variant {!r} was not yet done"),
}


class AnswerCutError(Exception):
    """An answer that is no stream was cut: the client sees its connection end too early."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


async def pass_on(
    answer: Answer,
    send: Send,
    variant: str,
    reason: RouteReason,
    seen: Callable[[bytes], None],
    limit: AnswerLimit,
    path: str = "",
    extra: Headers | None = None,
) -> Ending:
    """Pass an answer to the client as it comes, and show `seen` each piece of its body.

    `extra` are headers of the router's own.

    A stream that ends too early ends in an error event in the shape of `path`'s API, never in
    silence; any other answer is cut, since its announced length can no longer be kept: raises
    AnswerCutError.
    """
    headers: Headers = [
        pair
        for pair in answer.headers
        if pair[0] not in _NOT_PASSED_BACK and not pair[0].startswith(OWN_PREFIX)
    ]
    events = WholeEvents() if is_stream(header(headers, b"content-type")) else None
    headers.append((VARIANT_HEADER, variant.encode()))
    headers.append((REASON_HEADER, reason.encode()))
    if extra:
        headers += extra
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    sink = _sink(send, seen, limit, events)
    try:
        async with limit.of(answer):
            await answer.hand_on(sink)
    except UpstreamTruncatedError:
        ending = Ending.BROKE_OFF
    except TimeoutError:
        if limit.ending is None:
            raise
        ending = limit.ending
    else:
        rest = b"" if events is None else events.rest()
        await send({"type": "http.response.body", "body": rest, "more_body": False})
        return Ending.WHOLE
    if events is None:
        raise AnswerCutError(ending)
    await _last_word(send, variant, ending, events, path)
    return ending


def _sink(
    send: Send, seen: Callable[[bytes], None], limit: AnswerLimit, events: WholeEvents | None
) -> Sink:
    """What takes each piece. Runs once per token, so it calls as little as it can."""
    now = limit.loop.time

    def send_piece(piece: bytes) -> Taking:
        limit.last_s = now()
        seen(piece)
        return send({"type": "http.response.body", "body": piece, "more_body": True})

    if events is None:
        return send_piece
    write = short_way(send)

    def send_events(piece: bytes) -> Taking | None:
        limit.last_s = now()
        if events.held or not piece.endswith(EVENT_ENDS):
            piece = events.take(piece)
            if not piece:
                return None
        else:
            events.last = piece  # as `take` does: each frame costs a token a microsecond or two
        seen(piece)
        if write is not None and write(piece):
            return None
        return send({"type": "http.response.body", "body": piece, "more_body": True})

    return send_events


async def _last_word(
    send: Send, variant: str, ending: Ending, events: WholeEvents, path: str
) -> None:
    """The error event. Raises AnswerCutError when the client does not take it."""
    code, said = _SAYS[ending]
    message = f"{said.format(variant)}; send the request again"
    event = events.fresh_line() + error_event(path, code, message, events.last)
    try:
        async with asyncio.timeout(_LAST_WORD_S):
            await send({"type": "http.response.body", "body": event, "more_body": False})
    except TimeoutError:
        raise AnswerCutError(ending) from None
