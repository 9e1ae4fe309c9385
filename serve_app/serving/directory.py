"""What the router knows of its variants: asked for at intervals, never on a request's way."""

import asyncio
from collections.abc import Iterable

import msgspec

from serve_app.domain.checkpoint import VariantCard
from serve_app.serving.http import CARD_PATH, UNREADABLE_JSON
from serve_app.serving.relay import Relay, VariantBusyError, VariantDownError
from serve_app.serving.upstream import UpstreamTruncatedError

_PROBE_SCOPE = {"method": "GET", "path": CARD_PATH, "headers": [], "query_string": b""}
PROBE_TIMEOUT_S = 2.0
SILENT_PROBES = 3
"""Probes in a row without any answer after which a variant counts as down."""


class VariantDirectory:
    """Cards of the variants, and which are ready. Nothing is known of a variant before its first
    probe: it is then neither ready nor known to be down, and requests are still sent to it.
    """

    def __init__(
        self, relay: Relay, interval_s: float, *, timeout_s: float = PROBE_TIMEOUT_S
    ) -> None:
        self.cards: dict[str, VariantCard] = {}
        self._relay = relay
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, bool] = {}

    def follow(self, variants: Iterable[str]) -> None:
        """Watch exactly these variants from now on."""
        wanted = set(variants)
        for name in wanted - self._tasks.keys():
            self._tasks[name] = asyncio.create_task(self._watch(name), name=f"probe {name}")
        for name in self._tasks.keys() - wanted:
            self._tasks.pop(name).cancel()
            self._ready.pop(name, None)
            self.cards.pop(name, None)

    def known_down(self) -> frozenset[str]:
        """Variants whose last probe was refused."""
        return frozenset(name for name, ready in self._ready.items() if not ready)

    def not_ready(self, variants: Iterable[str]) -> list[str]:
        """Those of `variants` whose last probe did not find them ready, in the given order."""
        return [name for name in variants if not self._ready.get(name, False)]

    def close(self) -> None:
        """Stop watching."""
        self.follow(())

    async def _watch(self, name: str) -> None:
        silent = 0
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    self.cards[name] = await self._fetch_card(name)
                self._ready[name] = True
                silent = 0
            except (VariantDownError, UpstreamTruncatedError, *UNREADABLE_JSON):
                self._ready[name] = False
                silent = 0
            except VariantBusyError:
                silent = 0  # full is not down: overload must not be pushed on to the others
            except TimeoutError:
                silent += 1  # nor is slow: a busy machine must not move all traffic
                if silent >= SILENT_PROBES:
                    self._ready[name] = False
            await asyncio.sleep(self._interval_s)

    async def _fetch_card(self, name: str) -> VariantCard:
        answer = await self._relay.ask(name, _PROBE_SCOPE, b"")
        try:
            body = b""
            while chunk := await answer.read():
                body += chunk
        except BaseException:
            answer.close()
            raise
        status = answer.status
        answer.release()
        if status != 200:
            raise VariantDownError(f"its card answered {status}")
        return msgspec.json.decode(body, type=VariantCard)
