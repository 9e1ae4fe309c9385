"""Who decides where a simulated request goes: the ladder itself, a fixed choice, an oracle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from serve_app.config.ladder import LadderConfig
from serve_app.domain.observation import Observation
from serve_app.domain.traffic import AliasRules, Caller, TrafficSplit
from serve_app.domain.units import BP_TOTAL
from serve_app.routing.policy import decide
from serve_app.serving.ladder_loop import LadderLoop
from serve_app.simulate.engine import Job


class Policy(Protocol):
    """Told of everything that a router sees, in order of time."""

    tick_s: float | None
    """How often `tick` is called; None: never."""

    def choose(self, job: Job, in_flight: Mapping[str, int], now_s: float) -> str:
        """The variant for a request; `in_flight` is the truth over all routers."""

    def began(self, job: Job, now_s: float) -> None:
        """A request has its first token."""

    def ended(self, job: Job, now_s: float) -> None:
        """A request has its last token."""

    def tick(self, now_s: float) -> None:
        """Time passes."""

    def shares_bp(self) -> Mapping[str, float]:
        """How it spreads traffic now, in basis points."""


class Fixed:
    """All traffic on one variant."""

    tick_s: float | None = None

    def __init__(self, variant: str) -> None:
        self._variant = variant

    def choose(self, job: Job, in_flight: Mapping[str, int], now_s: float) -> str:
        """The one."""
        return self._variant

    def began(self, job: Job, now_s: float) -> None:
        """Not looked at."""

    def ended(self, job: Job, now_s: float) -> None:
        """Not looked at."""

    def tick(self, now_s: float) -> None:
        """Nothing changes."""

    def shares_bp(self) -> Mapping[str, float]:
        """All."""
        return {self._variant: float(BP_TOTAL)}


class Overflow(Fixed):
    """The best rung with room: fewer in flight than its limit. Sees all engines, at once."""

    def __init__(self, rungs: Sequence[str], limits: Sequence[int]) -> None:
        super().__init__(rungs[-1])
        self._limits = tuple(zip(rungs, limits, strict=False))

    def choose(self, job: Job, in_flight: Mapping[str, int], now_s: float) -> str:
        """The first rung below its limit, else the last."""
        for variant, limit in self._limits:
            if in_flight[variant] < limit:
                return variant
        return self._variant


class Ladder:
    """The router's own ladder, one per router replica, as `serving` runs it."""

    def __init__(
        self,
        config: LadderConfig,
        clock: Callable[[], float],
        n_routers: int = 1,
        tick_s: float = 0.25,
    ) -> None:
        self.tick_s: float | None = tick_s
        self.loops = [LadderLoop(clock, tick_s=None) for _ in range(n_routers)]
        for loop in self.loops:
            loop.configure(config)
        best, *others = config.rungs
        self._rules = AliasRules(
            TrafficSplit({best: BP_TOTAL, **dict.fromkeys(others, 0)}),
            rungs=config.rungs,
            moves_sessions=config.sessions == "move",
        )

    def choose(self, job: Job, in_flight: Mapping[str, int], now_s: float) -> str:
        """As the router does; requests come to its replicas in turn."""
        loop, caller = self._loop(job), Caller(str(job.index))
        decision = decide(self._rules, caller, ladder_bp=loop.shares_bp())
        loop.decided(decision, caller)
        loop.started(decision.variant)
        return decision.variant

    def began(self, job: Job, now_s: float) -> None:
        """The answer's first byte."""
        self._loop(job).first_byte(job.variant, job.ttft_s)

    def ended(self, job: Job, now_s: float) -> None:
        """The answer's end."""
        seen = Observation(job.variant, 200, job.ttft_s, now_s - job.arrived_s, job.tokens)
        self._loop(job).ended(seen, job.variant)

    def tick(self, now_s: float) -> None:
        """All replicas."""
        for loop in self.loops:
            loop.tick()

    def shares_bp(self) -> Mapping[str, float]:
        """Mean over the router replicas, without what gates at their limit turn away just now."""
        sums: dict[str, float] = {}
        for loop in self.loops:
            assert loop.state is not None
            for variant, share in loop.state.as_json()["shares_bp"].items():
                sums[variant] = sums.get(variant, 0.0) + share / len(self.loops)
        return sums

    def _loop(self, job: Job) -> LadderLoop:
        return self.loops[job.index % len(self.loops)]
