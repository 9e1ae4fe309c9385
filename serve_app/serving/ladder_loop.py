"""The precision ladder of one public name in one router replica: its clock, its counts, its loop.

The router asks `shares_bp` for a request, decides, and tells `decided`; then `started`, perhaps
`first_byte`, and `ended` for everything that it relays to any variant, pinned requests too, since
they take up room on the rungs. Each of these costs a few microseconds, and nothing where no ladder
is configured. Limits and counts are those of this router replica: the others see other requests,
have ladders of their own, and come to like shares without a word between them.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.config.ladder import LadderConfig
from serve_app.domain.observation import Observation
from serve_app.domain.traffic import Caller, RouteDecision, RouteReason
from serve_app.routing.ladder import Gate, GateReadings, LadderRules, LadderState, shares_for
from serve_app.routing.ladder_meter import LadderMeter
from serve_app.routing.ladder_step import step
from serve_app.telemetry.metrics import LadderMetrics

TICK_S = 0.25
_BY_THE_SPLIT = (RouteReason.STICKY, RouteReason.WEIGHTED, RouteReason.COHORT)
_NONE: frozenset[int] = frozenset()

logger = logging.getLogger("ray.serve")


class LadderLoop:
    """Make it in the loop that serves requests. `tick_s` None: the caller calls `tick` itself."""

    def __init__(
        self,
        clock: Callable[[], float],
        metrics: LadderMetrics | None = None,
        tick_s: float | None = TICK_S,
    ) -> None:
        self.state: LadderState | None = None
        """None while no ladder is configured."""
        self._clock = clock
        self._metrics = metrics
        self._tick_s = tick_s
        self._task: asyncio.Task[None] | None = None
        self._config: LadderConfig | None = None
        self._rules: LadderRules | None = None
        self._meter: LadderMeter | None = None
        self._readings: tuple[GateReadings, ...] = ()
        self._shares: dict[tuple[str | None, frozenset[int]], Mapping[str, int]] = {}

    def configure(self, config: LadderConfig | None) -> None:
        """Follow `config` from the next request on; None: no ladder.

        The same config again changes nothing. Other rungs or another SLO begin anew, with all
        traffic on the best rung; so does what was learned of requests that are in flight now.
        """
        if config == self._config:
            return
        self._config, self._shares = config, {}
        if config is None:
            self.state = self._rules = self._meter = None
            self._readings = ()
            self.close()
            return
        now_s = self._clock()
        before = self._meter
        self._rules = config.to_rules()
        self._meter = LadderMeter(self._rules, now_s)
        if before is not None:
            self._meter.take_over(before)
        self.state = LadderState.start(self._rules, now_s)
        self._readings = ()
        if self._metrics is not None:
            self._metrics.moved(self.state, self.state)
        if self._tick_s is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._tick_s))

    def close(self) -> None:
        """Stop ticking."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    @property
    def moves_sessions(self) -> bool:
        """Whether requests that name a session follow the ladder."""
        return self._config is not None and self._config.sessions == "move"

    def shares_bp(self, floor: str | None = None) -> Mapping[str, int] | None:
        """How the best rung's traffic is spread now, down to `floor` (None: to the last rung).

        None where no ladder is configured. A rung at its limit has no share at that moment. Raises
        ConfigError for a floor that is no rung.
        """
        if self.state is None:
            return None
        key = (floor, self._closed())
        shares = self._shares.get(key)
        if shares is None:
            shares = self._shares[key] = shares_for(self.state, floor, key[1])
        return shares

    def decided(self, decision: RouteDecision, caller: Caller) -> None:
        """Count a decision that was made with `shares_bp`; call it before `started`.

        Of requests that the ladder had no say in, nothing is counted.
        """
        if self.state is None or self._meter is None:
            return
        rungs = self.state.rungs
        asked = decision.reason is RouteReason.LADDER or (
            decision.reason in _BY_THE_SPLIT
            and decision.variant == rungs[0]
            and (self.moves_sessions or not caller.session)
        )
        if asked:
            floor = caller.cohort.floor if caller.cohort else None
            lowest = rungs.index(floor) if floor in rungs else len(rungs) - 1
            self._meter.routed(decision.variant, lowest, self._closed())

    def started(self, variant: str) -> None:
        """A request is being sent to `variant`."""
        if self._meter is not None:
            self._meter.started(variant, self._clock())

    def first_byte(self, variant: str, ttft_s: float) -> None:
        """Its answer, a stream, began. May be left out for all: then the TTFT is known at its end,
        which is later."""
        if self._meter is not None:
            self._meter.first_byte(variant, ttft_s, self._clock())

    def ended(self, observation: Observation | None, variant: str) -> None:
        """It is over; `observation` None: without an answer that teaches. Once per `started`."""
        if self._meter is not None:
            self._meter.ended(observation, variant, self._clock())

    def tick(self) -> None:
        """Look at what was counted, and move the gates if need be."""
        if self.state is None or self._meter is None or self._rules is None:
            return
        now_s = self._clock()
        self._readings = self._meter.readings(self.state, now_s)
        before, self.state = self.state, step(self._rules, self.state, self._readings, now_s)
        if [_stand(gate) for gate in before.gates] == [_stand(gate) for gate in self.state.gates]:
            return
        self._shares = {}
        logger.info("ladder: %s; now %s", self.state.reason, shares_for(self.state))
        if self._metrics is not None:
            self._metrics.moved(before, self.state)

    def tell(self) -> None:
        """Tell the metrics where the ladder stands."""
        if self.state is not None and self._metrics is not None:
            self._metrics.stands(self.state)

    def view(self) -> dict[str, Any] | None:
        """For `/status`: rung, reason, and of each rung its share, limit and times; None: none."""
        if self.state is None or self._meter is None:
            return None
        now_s, shares = self._clock(), shares_for(self.state)
        gates = {gate.variant: gate for gate in self.state.gates}
        closed = self._closed()
        rungs = {}
        for index, name in enumerate(self.state.rungs):
            ttft_s, tpot_s = self._meter.p95s(name, now_s)
            gate = gates.get(name)
            rungs[name] = {
                "share_bp": shares[name],
                "in_flight": self._meter.in_flight(name),
                "limit": gate and gate.limit,
                "at_limit": index in closed,
                "capacity_per_s": gate and gate.capacity_per_s(),
                "ttft_p95_s": ttft_s,
                "tpot_p95_s": tpot_s,
            }
        state = self.state
        return {
            "rung": state.rung,
            "reason": state.reason,
            "changes": state.changes,
            "rungs": rungs,
        }

    def _closed(self) -> frozenset[int]:
        """Gates whose rung is at its limit now."""
        if self.state is None or self._meter is None:
            return _NONE
        closed = [
            index
            for index, gate in enumerate(self.state.gates)
            if gate.limit is not None and self._meter.in_flight(gate.variant) >= gate.limit
        ]
        return frozenset(closed) if closed else _NONE

    async def _run(self, tick_s: float) -> None:
        while True:
            await asyncio.sleep(tick_s)
            try:
                self.tick()
            except Exception:  # a ladder that stopped would leave its shares where they are
                logger.exception("a step of the precision ladder failed; it goes on")


def _stand(gate: Gate) -> tuple[int, int | None]:
    return gate.keep_bp, gate.limit
