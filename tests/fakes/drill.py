"""A driver of constant open-loop traffic that marks phases: what became of each request, by phase.

Requests leave when they are due, whatever became of those before. Each belongs to the phase in
which it was sent.
"""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"
LIMIT_S = 60.0
SILENT_AFTER_S = 0.5
"""How much later than a process sent them bytes may be seen here."""
_DONE = b"data: [DONE]\n\n"


class Fate(StrEnum):
    """What became of a request."""

    OK = "ok"
    """Whole, with every token that it has to have."""
    BROKEN = "broken"
    """Begun, then ended by an error event."""
    FAILED = "failed"
    """Anything else: refused, cut without a word, silent, or short of tokens."""


@dataclass
class Sent:
    """One request. Times are seconds of the driver's monotonic clock."""

    phase: str
    sent_s: float
    streams: bool
    fate: Fate = Fate.FAILED
    status: int | None = None
    variant: str | None = None
    reason: str | None = None
    first_s: float | None = None
    """When the first byte of its body came; None where none did."""
    last_s: float | None = None
    """When the last bytes of its body so far came."""
    end_s: float = math.nan
    detail: str = ""

    @property
    def ttft_s(self) -> float | None:
        """To the first byte of the body."""
        return None if self.first_s is None else self.first_s - self.sent_s


@dataclass
class Row:
    """One phase in numbers. TTFT is of the streams that were whole; None where there were none."""

    phase: str
    sent: int
    ok: int
    broken: int
    failed: int
    fell_back: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    counted: dict[str, float] = field(default_factory=dict)
    """What the routers' metrics counted meanwhile."""


class Driver:
    """`async with Driver(...) as driver:` sends `rate_per_s` requests a second until its end.

    Every `whole_every`-th request is no stream. `driver.phase(name)` marks what is sent from then
    on.
    """

    timeout = aiohttp.ClientTimeout(total=LIMIT_S)

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        rate_per_s: float,
        n_tokens: int,
        whole_every: int = 5,
    ) -> None:
        self.requests: list[Sent] = []
        self.phases: list[str] = []
        self._url = base_url + CHAT
        self._model = model
        self._gap_s = 1 / rate_per_s
        self._n_tokens = n_tokens
        self._whole_every = whole_every
        self._over = asyncio.Event()

    def phase(self, name: str) -> None:
        """Requests that leave from now on belong to this phase."""
        self.phases.append(name)

    def in_flight(self, variant: str | None = None) -> list[Sent]:
        """Requests that have no end yet; with `variant`, those that it has begun to answer."""
        return [
            each
            for each in self.requests
            if math.isnan(each.end_s) and variant in (None, each.variant)
        ]

    async def __aenter__(self) -> "Driver":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=self.timeout,
        )
        self._work = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._over.set()
        await self._work
        await self._session.close()

    async def _drive(self) -> None:
        start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            number = 0
            while not self._over.is_set():
                if self.phases:
                    streams = number % self._whole_every != 0
                    sent = Sent(self.phases[-1], time.monotonic(), streams)
                    self.requests.append(sent)
                    group.create_task(self._ask(sent, number))
                number += 1
                await asyncio.sleep(max(0.0, start_s + number * self._gap_s - time.monotonic()))

    async def _ask(self, sent: Sent, number: int) -> None:
        sent.fate, sent.detail = await exchange(
            self._session,
            self._url,
            self._body(sent, number),
            sent,
            lambda status, received: fate(status, received, sent.streams, self._n_tokens),
        )

    def _body(self, sent: Sent, number: int) -> dict[str, Any]:
        message = {"role": "user", "content": f"drill {number}"}
        return {
            "model": self._model,
            "messages": [message],
            "max_tokens": self._n_tokens,
            "temperature": 0,
            "stream": sent.streams,
        }


async def exchange(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    sent: Sent,
    judge: Callable[[int, bytes], tuple[Fate, str]],
) -> tuple[Fate, str]:
    """Ask, and write into `sent` when what came; what became of it, with the reason, by `judge`."""
    received = bytearray()
    try:
        async with session.post(url, json=body) as answer:
            sent.status = answer.status
            sent.variant = answer.headers.get("x-variant")
            sent.reason = answer.headers.get("x-route-reason")
            async for piece in answer.content.iter_any():
                sent.last_s = time.monotonic()
                if sent.first_s is None:
                    sent.first_s = sent.last_s
                received += piece
    except (aiohttp.ClientError, TimeoutError) as error:
        return Fate.FAILED, repr(error)
    finally:
        sent.end_s = time.monotonic()
    return judge(sent.status, bytes(received))


def fate(status: int | None, body: bytes, streams: bool, n_tokens: int) -> tuple[Fate, str]:
    """What an answer that came to its end says of itself, and why it is not whole."""
    if status != 200:
        return Fate.FAILED, f"status {status}: {body[:200]!r}"
    if not streams:
        return _fate_of_whole(body, n_tokens)
    events = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: ")]
    if events and b'"error"' in events[-1]:
        error = _json(events[-1]).get("error")
        shaped = isinstance(error, dict) and {"message", "type", "code"} <= error.keys()
        return (Fate.BROKEN if shaped else Fate.FAILED), events[-1].decode(errors="replace")
    if not body.endswith(_DONE):
        return Fate.FAILED, f"it ends in silence: {body[-80:]!r}"
    deltas = [_json(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    n_told = sum(1 for delta in deltas if delta)
    if n_told != n_tokens:
        return Fate.FAILED, f"{n_told} of {n_tokens} tokens"
    return Fate.OK, ""


def _fate_of_whole(body: bytes, n_tokens: int) -> tuple[Fate, str]:
    n_told = (_json(body).get("usage") or {}).get("completion_tokens")
    if n_told != n_tokens:
        return Fate.FAILED, f"usage says {n_told} of {n_tokens} tokens: {body[:200]!r}"
    return Fate.OK, ""


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def fell_silent(sent: Sent, frozen_s: float, killed_s: float) -> bool:
    """Whether it was a begun stream of the process that was frozen, and then killed.

    A stream tells a token every few milliseconds, unless whoever passes it on stands still: one
    that was told nothing between the two, but for bytes that were on their way, and ended only
    then, was on that process. On any other it would have gone on.
    """
    if not sent.streams or sent.last_s is None:
        return False
    is_silent = sent.last_s < frozen_s + SILENT_AFTER_S
    return sent.sent_s < frozen_s and is_silent and sent.end_s > killed_s


def rows(requests: Iterable[Sent], phases: Sequence[str]) -> list[Row]:
    """The phases in their order."""
    every = list(requests)
    return [_row(phase, [each for each in every if each.phase == phase]) for phase in phases]


def _row(phase: str, requests: list[Sent]) -> Row:
    fates = Counter(each.fate for each in requests)
    ttfts_ms = sorted(
        each.ttft_s * 1000
        for each in requests
        if each.streams and each.fate is Fate.OK and each.ttft_s is not None
    )
    return Row(
        phase=phase,
        sent=len(requests),
        ok=fates[Fate.OK],
        broken=fates[Fate.BROKEN],
        failed=fates[Fate.FAILED],
        fell_back=sum(each.reason == "fallback" for each in requests),
        ttft_p50_ms=_nearest_rank(ttfts_ms, 0.5),
        ttft_p99_ms=_nearest_rank(ttfts_ms, 0.99),
    )


def _nearest_rank(values: Sequence[float], share: float) -> float | None:
    return values[math.ceil(share * len(values)) - 1] if values else None


def table(rows: Sequence[Row], counters: Sequence[str] = ()) -> str:
    """The rows as text, `counters` of the routers' metrics behind."""
    head = ["phase", "sent", "ok", "broken", "failed", "fell back", "TTFT P50", "P99", *counters]
    lines = [head] + [
        [
            each.phase,
            *map(str, (each.sent, each.ok, each.broken, each.failed, each.fell_back)),
            *(_ms(value) for value in (each.ttft_p50_ms, each.ttft_p99_ms)),
            *(f"{each.counted.get(name, math.nan):g}" for name in counters),
        ]
        for each in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])
