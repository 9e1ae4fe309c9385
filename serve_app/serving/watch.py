"""Watches one answer pass: when its first and last bytes went by, and what it says it used."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.domain.observation import Observation

_TAIL_BYTES = 4096
"""`usage` stands at the end of an answer; in a stream, in the last event but `[DONE]`."""
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as the engine counted them; None: it did not say."""

    prompt_tokens: int | None
    completion_tokens: int | None


class Watch:
    """Told of every piece of one answer; costs well under a microsecond each."""

    __slots__ = ("_before", "_clock", "_last", "_tap", "arrived_s", "first_s")

    def __init__(
        self, clock: Callable[[], float], tap: Callable[[bytes], None] | None = None
    ) -> None:
        self.arrived_s = clock()
        self.first_s: float | None = None
        self._clock = clock
        self._tap = tap
        self._last = self._before = b""

    def tap(self, tap: Callable[[bytes], None]) -> None:
        """Show every piece to `tap` too; call it before the first one."""
        self._tap = tap

    def piece(self, piece: bytes) -> None:
        """The next bytes of the answer's body are on their way to the client."""
        if self.first_s is None:
            self.first_s = self._clock()
        self._before, self._last = self._last, piece
        if self._tap is not None:
            self._tap(piece)

    def usage(self) -> Usage:
        """What the end of the answer says. Only for answers that are over: it searches bytes."""
        tail = (self._before[-_TAIL_BYTES:] + self._last)[-_TAIL_BYTES:]
        return Usage(_last_number(_PROMPT, tail), _last_number(_COMPLETION, tail))

    def observation(self, variant: str, status: int, whole: bool, streams: bool) -> Observation:
        """The request as it ended, now; `streams`: its answer is a stream of events."""
        now_s = self._clock()
        first_s = self.first_s if streams else None
        usage = self.usage()
        return Observation(
            variant=variant,
            status=status,
            ttft_s=None if first_s is None else first_s - self.arrived_s,
            duration_s=now_s - self.arrived_s,
            completion_tokens=usage.completion_tokens,
            whole=whole,
            prompt_tokens=usage.prompt_tokens,
        )


def _last_number(pattern: re.Pattern[bytes], tail: bytes) -> int | None:
    found = pattern.findall(tail)
    return int(found[-1]) if found else None
