"""Shadow traffic: a share of an alias's requests is sent to a candidate variant as well.

The client is served by its primary alone. The copy is sent once the primary's answer is under way,
over the router's own relay, within limits of number, bytes and time; whatever becomes of it is
counted and never seen by the client. See decision 0020.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from serve_app.config.shadow import ShadowConfig
from serve_app.engines.engine import Scope
from serve_app.routing.shadowing import CANDIDATE_FAILED, Circuit, Drop, is_mirrored
from serve_app.serving.relay import Relay
from serve_app.serving.shadow_ask import DroppedError, ask_candidate
from serve_app.serving.shadow_compare import End, Pair, Result
from serve_app.serving.shadow_request import (
    MIRRORED_PATHS,
    Original,
    UnreadableRequestError,
    is_marked,
    read_request,
)
from serve_app.serving.shadow_tally import ShadowTally
from serve_app.serving.shadow_tap import Held, Tap
from serve_app.serving.shadow_work import ShadowWork
from serve_app.telemetry.metrics import ShadowMetrics

_REMEMBERED = 4096
"""Mirrored requests whose ids are remembered, so that a retry is not mirrored again."""

logger = logging.getLogger("ray.serve")


class Shadow:
    """Mirrors requests of one alias, as its configuration says at the moment; at first not at all.

    Use it in the loop that serves requests.
    """

    def __init__(
        self,
        relay: Relay,
        metrics: ShadowMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._relay = relay
        self._clock = clock
        self._config: ShadowConfig | None = None
        self._held = Held()
        self._tally = ShadowTally(metrics)
        self._work = ShadowWork(wall_clock)
        self._circuit = Circuit(1, 0.0)
        self._seen: dict[int, None] = {}
        self._queue: deque[Tap] = deque()
        self._live: set[Tap] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_running = 0

    def configure(self, config: ShadowConfig | None) -> None:
        """Mirror by `config` from the next request on.

        With another candidate, or none, what is under way for the one before is dropped.
        """
        before, self._config = self._config, config
        if before and (config is None or config.variant != before.variant):
            self._drop_all()
            self._circuit.answered()
        self._work.configure(config.log if config else None)
        if config:
            self._held.limit_bytes = config.max_held_bytes
            self._circuit.change(config.pause_after_failures, config.pause_s)
            self._start_waiting()

    @property
    def variant(self) -> str | None:
        """The candidate; None while nothing is mirrored."""
        return self._config.variant if self._config else None

    def close(self) -> None:
        """Drop what is under way and close the log."""
        self._config = None
        self._drop_all()
        self._work.close()

    def tap(
        self,
        request_id: str,
        scope: Scope,
        body: bytes,
        primary_variant: str,
        *,
        session: str | None = None,
    ) -> Tap | None:
        """Who is to be shown the answer that `primary_variant` gives; None: it is not mirrored.

        Ask once per request, when the head of its answer has come. With a `session` the whole
        session is mirrored or not: the candidate then sees the same prefixes as the primary.
        """
        config = self._config
        if config is None or scope["path"] not in MIRRORED_PATHS:
            return None
        if not is_mirrored(session or request_id, config.share_bp):
            return None
        reason = self._why_not(config, request_id, scope, body, primary_variant)
        if reason is not None:
            self._tally.dropped(primary_variant, config.variant, reason)
            return None
        tap = Tap(self, config, self._held, Original(request_id, primary_variant, scope, body))
        self._live.add(tap)
        if not tap.hold_request():
            self.drop(tap, Drop.BYTES_HELD)
            return None
        self._remember(request_id)
        return tap

    def view(self) -> dict[str, Any] | None:
        """The state as JSON, counts since this replica's start; None while nothing is mirrored."""
        config = self._config
        if config is None:
            return None
        return {
            "variant": config.variant,
            "share_bp": config.share_bp,
            "running": self._n_running,
            "queued": len(self._queue),
            "held_bytes": self._held.n_bytes,
            "paused_for_s": self._circuit.pause_left_s(self._clock()),
            **self._tally.view(),
            "log": self._work.view(),
        }

    def begin(self, tap: Tap) -> None:
        """As `Owner.begin`: the copy is sent by a later callback, after the piece at hand."""
        asyncio.get_running_loop().call_soon(self._admit, tap)

    def drop(self, tap: Tap, reason: Drop) -> None:
        """As `Owner.drop`."""
        if tap.is_over:
            return
        if tap in self._queue:
            self._queue.remove(tap)
        self._tally.dropped(tap.original.primary, tap.config.variant, reason)
        self._let_go(tap)

    def _why_not(
        self, config: ShadowConfig, request_id: str, scope: Scope, body: bytes, primary: str
    ) -> Drop | None:
        if is_marked(scope):
            return Drop.IS_MIRROR
        if primary == config.variant:
            return Drop.SAME_VARIANT
        if len(body) > config.max_body_bytes:
            return Drop.BODY_TOO_LARGE
        if self._circuit.pause_left_s(self._clock()):
            return Drop.PAUSED
        return Drop.REPEATED if hash(request_id) in self._seen else None

    def _remember(self, request_id: str) -> None:
        if len(self._seen) >= _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[hash(request_id)] = None  # an id may be as long as a client likes

    def _admit(self, tap: Tap) -> None:
        if tap.is_over:
            return
        try:
            tap.asked = read_request(tap.original.body)
        except UnreadableRequestError:
            self.drop(tap, Drop.UNREADABLE_REQUEST)
            return
        if tap.config.only_greedy and not tap.asked.is_greedy:
            self.drop(tap, Drop.SAMPLED)
        elif self._circuit.pause_left_s(self._clock()):
            self.drop(tap, Drop.PAUSED)
        elif self._n_running < tap.config.max_concurrent:
            self._start(tap)
        elif len(self._queue) < tap.config.max_queued:
            self._queue.append(tap)
        else:
            self.drop(tap, Drop.QUEUE_FULL)

    def _start(self, tap: Tap) -> None:
        self._n_running += 1
        tap.has_slot = True
        tap.task = asyncio.get_running_loop().create_task(self._mirror(tap), name="shadow")
        self._tasks.add(tap.task)
        tap.task.add_done_callback(lambda task: self._is_done(tap, task))

    def _is_done(self, tap: Tap, task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before its first step."""
        self._tasks.discard(task)
        self._let_go(tap)

    def _start_waiting(self) -> None:
        while self._queue and self._config and self._n_running < self._config.max_concurrent:
            self._start(self._queue.popleft())

    async def _mirror(self, tap: Tap) -> None:
        try:
            shadow_end = await self._ask(tap)
            primary_end = await tap.primary_end
            if not self._work.has_room:
                raise DroppedError(Drop.BACKLOG)
            pair = self._pair(tap, shadow_end, primary_end)
            result = await self._work.compare(pair)
            self._settle(tap, pair, result)
        except DroppedError as dropped:
            if not tap.is_over:
                self.drop(tap, dropped.reason)
        except Exception:
            logger.exception("a mirrored request failed by our own fault")
            self._count_failure(tap)
            self.drop(tap, Drop.BUG)

    async def _ask(self, tap: Tap) -> End:
        try:
            return await ask_candidate(self._relay, tap, self._clock)
        except DroppedError as dropped:
            if dropped.reason in CANDIDATE_FAILED:
                self._count_failure(tap)
            elif dropped.reason is Drop.SHADOW_REFUSED:
                self._circuit.answered()
            if not tap.is_over:
                self._work.note(self._pair(tap, dropped.end), Result(dropped.reason))
            raise
        finally:
            self._free_slot(tap)

    def _count_failure(self, tap: Tap) -> None:
        if not self._circuit.failed(self._clock()):
            return
        config = tap.config
        logger.warning(
            "shadow variant %s failed %d times in a row; mirroring pauses for %g s",
            config.variant,
            config.pause_after_failures,
            config.pause_s,
        )
        for waiting in list(self._queue):
            self.drop(waiting, Drop.PAUSED)

    def _settle(self, tap: Tap, pair: Pair, result: Result) -> None:
        if tap.is_over:
            return
        if result.drop in CANDIDATE_FAILED:
            self._count_failure(tap)
        else:
            self._circuit.answered()
        if result.agreement is None or pair.primary_end is None or pair.shadow_end is None:
            self.drop(tap, result.drop or Drop.BUG)
            return
        ends = pair.primary_end, pair.shadow_end
        self._tally.mirrored(
            pair.original.primary, pair.shadow, ends, result.agreement, pair.asked.is_greedy
        )
        self._let_go(tap)

    def _pair(self, tap: Tap, shadow_end: End | None, primary_end: End | None = None) -> Pair:
        return Pair(
            original=tap.original,
            asked=tap.asked,
            shadow=tap.config.variant,
            primary_end=primary_end,
            primary=tap.primary,
            shadow_end=shadow_end,
            candidate=tap.candidate,
        )

    def _free_slot(self, tap: Tap) -> None:
        if tap.has_slot:
            tap.has_slot = False
            self._n_running -= 1
            self._start_waiting()

    def _let_go(self, tap: Tap) -> None:
        """The end of a tap, however it came to it; again does nothing."""
        self._live.discard(tap)
        if not tap.is_over:
            tap.let_go()
        if tap.task is None or tap.task.done():
            self._free_slot(tap)
        elif tap.task is not asyncio.current_task():
            tap.task.cancel()

    def _drop_all(self) -> None:
        for tap in list(self._live):
            self.drop(tap, Drop.RECONFIGURED)
