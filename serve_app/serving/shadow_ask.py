"""Send a mirrored request to its candidate, and take in the answer within its limits."""

import asyncio
from collections.abc import Callable

from serve_app.routing.shadowing import Drop
from serve_app.serving.http import header
from serve_app.serving.relay import Answer, Relay, VariantBusyError, VariantDownError
from serve_app.serving.shadow_compare import End
from serve_app.serving.shadow_request import UnreadableRequestError, without_pin
from serve_app.serving.shadow_tap import Tap
from serve_app.serving.sse import is_stream
from serve_app.serving.upstream import UpstreamTruncatedError


class DroppedError(Exception):
    """The mirror is given up for `reason`; `end` is the candidate's answer, as far as it came."""

    def __init__(self, reason: Drop, end: End | None = None) -> None:
        super().__init__(reason, end)
        self.reason = reason
        self.end = end


async def ask_candidate(relay: Relay, tap: Tap, clock: Callable[[], float]) -> End:
    """Ask, and keep the bytes of the answer in `tap.candidate`.

    Times are by `clock`, in seconds, from the question. Raises DroppedError; leaves no answer open.
    """
    config = tap.config
    try:
        body = without_pin(tap.original.body, tap.asked)
    except UnreadableRequestError:
        raise DroppedError(Drop.UNREADABLE_REQUEST) from None
    asked_s = clock()
    try:
        async with asyncio.timeout(config.timeout_s):
            answer = await relay.ask(
                config.variant, tap.original.marked_scope(), body, config.timeout_s
            )
            return await _take_in(answer, tap, asked_s, clock)
    except VariantDownError:
        raise DroppedError(Drop.SHADOW_DOWN) from None
    except VariantBusyError:
        raise DroppedError(Drop.SHADOW_BUSY) from None
    except UpstreamTruncatedError:
        raise DroppedError(Drop.SHADOW_CUT) from None
    except TimeoutError:
        raise DroppedError(Drop.SHADOW_LATE) from None


async def _take_in(answer: Answer, tap: Tap, asked_s: float, clock: Callable[[], float]) -> End:
    first_s: float | None = None
    n_bytes = 0

    async def keep(piece: bytes) -> None:
        nonlocal first_s, n_bytes
        if first_s is None:
            first_s = clock()
        n_bytes += len(piece)
        if n_bytes > tap.config.max_body_bytes:
            raise DroppedError(Drop.SHADOW_TOO_LARGE)
        tap.candidate.append(piece)
        if not tap.hold(len(piece)):
            raise DroppedError(Drop.BYTES_HELD)

    status, streams = answer.status, is_stream(header(answer.headers, b"content-type"))
    try:
        await answer.hand_on(keep)
    except BaseException:
        answer.close()
        raise
    answer.release()
    now_s = clock()
    ttft_s = first_s - asked_s if streams and first_s is not None else None
    end = End(status, ttft_s, now_s - asked_s)
    if status >= 500:
        raise DroppedError(Drop.SHADOW_FAILED, end)
    if status != 200:
        raise DroppedError(Drop.SHADOW_REFUSED, end)
    return end
