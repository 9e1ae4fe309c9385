"""Compare what two variants answered to one request, and write it down: off the event loop."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from serve_app.routing.agreement import Agreement, Reading, agree
from serve_app.routing.shadowing import Drop
from serve_app.serving.shadow_request import Asked, Original
from serve_app.serving.shadow_text import (
    ErrorInStreamError,
    UnreadableAnswerError,
    read_answer,
)

COMPARED = "compared"
MAX_CHARS = 256 * 1024
"""The longest text that is compared, far beyond any answer: a single step on a longer one would
keep the interpreter from the event loop for more than some milliseconds."""
_DIGEST_BYTES = 16
_BREATH_S = 1e-6


@dataclass(frozen=True, slots=True)
class End:
    """How one of the two answers ended. Times in seconds, from the request's being sent."""

    status: int
    ttft_s: float | None
    """Of a stream; None: it was none."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A mirrored request with both of its answers, or as far as it came."""

    original: Original
    asked: Asked
    shadow: str
    primary_end: End | None = None
    primary: Sequence[bytes] = ()
    shadow_end: End | None = None
    candidate: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What a comparison found: an agreement, or why there is none."""

    drop: Drop | None
    agreement: Agreement | None = None
    readings: tuple[Reading | None, Reading | None] = (None, None)


class Side(msgspec.Struct):
    """One of the two answers in the log. Null is not known."""

    variant: str
    status: int | None
    ttft_s: float | None
    duration_s: float | None
    tokens: int | None
    chars: int | None
    digest: str | None
    text: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `texts` only."""


class Line(msgspec.Struct):
    """A line of the log."""

    time_s: float
    request_id: str
    path: str
    outcome: str
    """`compared`, or the reason why the answers were not."""
    sampled: bool
    seed: int | None
    request_bytes: int
    request_digest: str
    primary: Side
    shadow: Side
    agreement: Agreement | None
    request: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """With `texts` only."""


def breathe() -> None:
    """Let the event loop's thread have the interpreter: else it waits for up to 5 ms.

    A sleep of 0 would not do: it may be over before the other thread has woken.
    """
    time.sleep(_BREATH_S)


def compare(pair: Pair) -> Result:
    """Read both answers and compare them."""
    readings = []
    sides = (
        (pair.primary, Drop.PRIMARY_UNREADABLE, Drop.PRIMARY_FAILED, Drop.PRIMARY_TOO_LARGE),
        (pair.candidate, Drop.SHADOW_UNREADABLE, Drop.SHADOW_FAILED, Drop.SHADOW_TOO_LARGE),
    )
    for pieces, unreadable, failed, too_large in sides:
        try:
            reading = read_answer(b"".join(pieces), breathe)
        except UnreadableAnswerError:
            return Result(unreadable)
        except ErrorInStreamError:
            return Result(failed)
        if len(reading.text) > MAX_CHARS:
            return Result(too_large)
        readings.append(reading)
    primary, candidate = readings
    breathe()
    return Result(None, agree(primary, candidate), (primary, candidate))


def line_of(pair: Pair, result: Result, *, time_s: float, texts: bool, key: bytes) -> bytes:
    """The log's line. `key` makes digests that nobody else can look up; `texts` gives the texts."""
    original, (first, second) = pair.original, result.readings
    line = Line(
        time_s=time_s,
        request_id=original.request_id,
        path=original.scope["path"],
        outcome=COMPARED if result.drop is None else str(result.drop),
        sampled=not pair.asked.is_greedy,
        seed=pair.asked.seed,
        request_bytes=len(original.body),
        request_digest=_digest(original.body, key),
        primary=_side(original.primary, pair.primary_end, first, texts, key),
        shadow=_side(pair.shadow, pair.shadow_end, second, texts, key),
        agreement=result.agreement,
        request=msgspec.Raw(original.body) if texts else msgspec.UNSET,
    )
    # The body may be JSON of many lines.
    return msgspec.json.format(msgspec.json.encode(line), indent=-1) + b"\n"


def _side(variant: str, end: End | None, reading: Reading | None, texts: bool, key: bytes) -> Side:
    side = Side(
        variant=variant,
        status=None if end is None else end.status,
        ttft_s=None if end is None else end.ttft_s,
        duration_s=None if end is None else end.duration_s,
        tokens=None if reading is None else reading.completion_tokens,
        chars=None if reading is None else len(reading.text),
        digest=None if reading is None else _digest(reading.text.encode(), key),
    )
    if texts:
        side.text = None if reading is None else reading.text
    return side


def _digest(data: bytes, key: bytes) -> str:
    return blake2b(data, digest_size=_DIGEST_BYTES, key=key).hexdigest()
