"""Open-loop streams that can be found again: each has a trace and a request id of its own."""

import asyncio
import itertools
import json
import threading
from dataclasses import dataclass
from typing import Self

import httpx

from serve_app.routing.split import assign
from tests.fakes.serve_client import CHAT, chat

CLIENT_SPAN = "b7ad6b7169203331"
TIMEOUT_S = 60.0


@dataclass
class Asked:
    """One stream, and what its client saw of it."""

    number: int
    meant_for: str
    """The variant that the split chooses for its session."""
    variant: str | None = None
    """Who answered; None: nobody so far."""
    reason: str | None = None
    status: int | None = None
    ended: str | None = None
    """`whole`, or the code of its error event, or what else went wrong; None: it goes on."""

    @property
    def trace(self) -> str:
        return f"{self.number + 1:032x}"

    @property
    def request_id(self) -> str:
        return f"known-{self.number}"


def session_of(variant: str, shares_bp: dict[str, int]) -> str:
    """A session that the split gives to this variant."""
    keys = (f"session-{n}" for n in itertools.count())
    return next(key for key in keys if assign(key, shares_bp) == variant)


class KnownLoad:
    """Inside the `with`, a stream every `gap_s`, its variants in turn; at its end all are over."""

    def __init__(self, base_url: str, model: str, shares_bp: dict[str, int], gap_s: float) -> None:
        self.asked: list[Asked] = []
        self._base_url, self._model, self._gap_s = base_url, model, gap_s
        self._sessions = {name: session_of(name, shares_bp) for name in shares_bp}
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._drive()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(TIMEOUT_S + 5)
        assert not self._thread.is_alive()

    def under_way(self, variant: str) -> tuple[int, int]:
        """Streams meant for this variant that have not begun, and those that it answers now."""
        mine = [each for each in tuple(self.asked) if each.ended is None]
        waiting = [each for each in mine if each.variant is None and each.meant_for == variant]
        return len(waiting), len([each for each in mine if each.variant == variant])

    async def _drive(self) -> None:
        limits = httpx.Limits(max_connections=None)
        turns = itertools.cycle(self._sessions)
        async with (
            httpx.AsyncClient(base_url=self._base_url, timeout=TIMEOUT_S, limits=limits) as client,
            asyncio.TaskGroup() as requests,
        ):
            for number in itertools.count():
                self.asked.append(Asked(number, next(turns)))
                requests.create_task(self._ask(client, self.asked[-1]))
                await asyncio.sleep(self._gap_s)
                if self._over.is_set():
                    break

    async def _ask(self, client: httpx.AsyncClient, asked: Asked) -> None:
        headers = {
            "x-request-id": asked.request_id,
            "x-session-id": self._sessions[asked.meant_for],
            "traceparent": f"00-{asked.trace}-{CLIENT_SPAN}-01",
        }
        body = chat(self._model, 1000, stream=True)
        ended = "cut"
        try:
            async with client.stream("POST", CHAT, json=body, headers=headers) as answer:
                asked.status = answer.status_code
                asked.variant = answer.headers["x-variant"]
                asked.reason = answer.headers["x-route-reason"]
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        ended = "whole"
                    elif '"error"' in line:
                        ended = json.loads(line.removeprefix("data: "))["error"]["code"]
        except httpx.HTTPError as error:
            ended = type(error).__name__
        asked.ended = ended
