"""What the router knows of its variants: asked for at intervals, never on a request's way."""

import asyncio
import time
from collections.abc import Iterable, Sequence

import msgspec

from serve_app.domain.checkpoint import VariantCard
from serve_app.serving.http import CARD_PATH, UNREADABLE_JSON
from serve_app.serving.relay import (
    IngressDownError,
    Relay,
    ReplicaLostError,
    VariantBusyError,
    VariantDownError,
)
from serve_app.serving.sleepers import Sleepers
from serve_app.serving.upstream import UpstreamTruncatedError

_PROBE_SCOPE = {"method": "GET", "path": CARD_PATH, "headers": [], "query_string": b""}
PROBE_TIMEOUT_S = 2.0
SILENT_PROBES = 3
"""Probes in a row without any answer after which a variant counts as down."""
_GLANCE_S = 0.05
LOOK_S = 0.25
"""How long a lost request waits to learn whether its variant has another replica."""
SLEEPER_INTERVALS = 5
"""Probe intervals between two looks at the variants that may sleep."""


class VariantDirectory:
    """Cards of the variants, and which are ready. Nothing is known of a variant before its first
    probe: it is then neither ready nor known to be down, and requests are still sent to it. The
    same holds for one that is asleep: it is not probed, since that would wake it.
    """

    def __init__(
        self,
        relay: Relay,
        interval_s: float,
        sleepers: Sleepers,
        *,
        timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self.cards: dict[str, VariantCard] = {}
        self._relay = relay
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._sleepers = sleepers
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._looks: dict[str, asyncio.Task[bool]] = {}
        self._sleep_watch: asyncio.Task[None] | None = None
        self._may_sleep: frozenset[str] = frozenset()
        self._asleep: frozenset[str] = frozenset()
        self._ready: dict[str, bool] = {}
        self._down: frozenset[str] = frozenset()
        self._silent: dict[str, int] = {}

    def follow(self, variants: Iterable[str], may_sleep: Iterable[str] = ()) -> None:
        """Watch exactly these variants from now on; of them, `may_sleep` may have no replica."""
        wanted = set(variants)
        self._follow_sleepers(frozenset(may_sleep) & wanted)
        probed = wanted - self._may_sleep
        for name in probed - self._tasks.keys():
            self._tasks[name] = asyncio.create_task(self._watch(name), name=f"probe {name}")
        for name in self._tasks.keys() - probed:
            self._tasks.pop(name).cancel()
        for name in {*self._ready, *self.cards, *self._silent} - wanted:
            self._forget(name)
            self.cards.pop(name, None)

    def _follow_sleepers(self, names: frozenset[str]) -> None:
        if names == self._may_sleep:
            return
        self._may_sleep, self._asleep = names, self._asleep & names
        if self._sleep_watch is not None:
            self._sleep_watch.cancel()
            self._sleep_watch = None
        if names:
            self._sleep_watch = asyncio.create_task(self._watch_sleepers(), name="sleepers")

    def is_asleep(self, name: str) -> bool:
        """Whether the variant has no replica on purpose: a request wakes it."""
        return name in self._asleep

    def has_woken(self, name: str) -> None:
        """The variant answered: that is newer than Serve's last word on it."""
        self._asleep -= {name}
        self._found(name, ready=True)

    def is_ready(self, name: str) -> bool:
        """Whether the last probe found the variant ready."""
        return self._ready.get(name, False)

    def known_down(self) -> frozenset[str]:
        """Variants whose last probe was refused."""
        return self._down

    def not_ready(self, variants: Iterable[str]) -> list[str]:
        """Those of `variants` that are neither ready nor asleep, in the given order."""
        return [name for name in variants if not (self.is_ready(name) or self.is_asleep(name))]

    async def first_look(self, variants: Sequence[str], limit_s: float) -> list[str]:
        """Wait until the variants are ready, and say which are not.

        An ingress that has just started knows the way to all of them or to none: once one is ready
        the others have two probe intervals. While none is, there may be none yet: `limit_s`.
        """
        now_s = time.monotonic()
        end_s = now_s + limit_s
        while (missing := self.not_ready(variants)) and now_s < end_s:
            if len(missing) < len(variants):
                end_s = min(end_s, now_s + 2 * self._interval_s)
            await asyncio.sleep(_GLANCE_S)
            now_s = time.monotonic()
        return missing

    async def is_there(self, name: str) -> bool:
        """Look now, for a request whose replica was lost: whether another one answers at once.

        While a variant has no replica, Serve's proxy holds its requests until it has one: a
        request that could go elsewhere would wait for an engine's start. Requests share a look.
        """
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = asyncio.create_task(self._look(name), name=f"look {name}")
            look.add_done_callback(lambda _: self._looks.pop(name, None))
        return await asyncio.shield(look)

    async def _look(self, name: str) -> bool:
        try:
            async with asyncio.timeout(LOOK_S):
                self.cards[name] = await self._fetch_card(name)
        except (TimeoutError, VariantBusyError, UpstreamTruncatedError, *UNREADABLE_JSON):
            return False
        return True

    def close(self) -> None:
        """Stop watching."""
        self.follow(())
        for look in self._looks.values():
            look.cancel()

    async def _watch(self, name: str) -> None:
        while True:
            await self._probe(name)
            await asyncio.sleep(self._interval_s)

    async def _watch_sleepers(self) -> None:
        """Probe those that are awake, right after asking who is: what Serve puts to sleep between
        the question and the probe is woken again, which costs one idle period and no more.
        """
        while True:
            sleeping = await self._sleepers.names()
            if sleeping is not None:  # else a probe might wake one that sleeps
                self._asleep = self._may_sleep & sleeping
                for name in self._asleep:
                    self._forget(name)
                awake = self._may_sleep - self._asleep
                await asyncio.gather(*(self._probe(name) for name in awake))
            await asyncio.sleep(self._interval_s * SLEEPER_INTERVALS)

    def _found(self, name: str, *, ready: bool) -> None:
        self._ready[name] = ready
        self._down = self._down - {name} if ready else self._down | {name}

    def _forget(self, name: str) -> None:
        self._ready.pop(name, None)
        self._silent.pop(name, None)
        self._down -= {name}

    async def _probe(self, name: str) -> None:
        silent = self._silent.pop(name, 0)
        try:
            async with asyncio.timeout(self._timeout_s):
                self.cards[name] = await self._card(name)
            self._found(name, ready=True)
        except (TimeoutError, IngressDownError):
            # Slow is not down: a busy machine must not move all traffic. Nor is an ingress's pause.
            self._silent[name] = silent + 1
            if self._silent[name] >= SILENT_PROBES:
                self._found(name, ready=False)
        except (VariantDownError, UpstreamTruncatedError, *UNREADABLE_JSON):
            self._found(name, ready=False)
        except VariantBusyError:
            return  # full is not down: overload must not be pushed on to the others

    async def _card(self, name: str) -> VariantCard:
        """Asked for twice if its replica was lost: the end of one is not the end of all."""
        try:
            return await self._fetch_card(name)
        except (ReplicaLostError, UpstreamTruncatedError):
            return await self._fetch_card(name)

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
