"""Carries a rollout out: changes the split, gathers evidence, asks the core, writes all down."""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from serve_app.config.rollout import RolloutConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollout.judge import (
    RolloutVerdict,
    Ruling,
    begin_step,
    log_against,
    observe,
    rule,
)
from serve_app.rollout.plan import RolloutPlan
from serve_app.rollouts.evidence import Clock, Evidence, together
from serve_app.rollouts.state import (
    GuardResult,
    Pending,
    Phase,
    Point,
    RolloutState,
    StepResult,
    digest_of,
    read_state,
    write_state,
)
from serve_app.splits.live_split import (
    SplitStore,
    SplitUnreachableError,
    require_expected,
    same_shares,
    shares_at,
)

LOG_10 = math.log(10)
WATCH_S = 30.0
"""How often the split is looked at while a step lasts."""
_ENDS = {
    RolloutVerdict.ROLLBACK: Phase.ROLLED_BACK,
    RolloutVerdict.INCONCLUSIVE: Phase.INCONCLUSIVE,
}
Show = Callable[[RolloutState, Ruling | None, Sequence[str]], None]
"""Told at every look: the state, the verdict, and what is wrong with the sources."""


class Controller:
    """One rollout in one folder. `run` may be cut off anywhere, and called again.

    Raises SplitChangedError where somebody else changes the split, SplitUnreachableError where it
    cannot be changed, ConfigError for a state of another configuration.
    """

    def __init__(
        self,
        config: RolloutConfig,
        store: SplitStore,
        sources: Sequence[Evidence],
        folder: Path,
        clock: Clock,
        show: Show = lambda state, ruling, troubles: None,
    ) -> None:
        self._config = config
        self._plan: RolloutPlan = config.to_plan()
        self._store = store
        self._sources = sources
        self._folder = folder
        self._clock = clock
        self._show = show

    async def run(self, started_at: str) -> RolloutState:
        """To the end of the rollout: its last state, with a phase other than RUNNING."""
        state = await self._resumed() or await self._begun(started_at)
        while state.phase is Phase.RUNNING:
            if state.pending is not None:
                state = await self._carry_out(state, state.pending)
            else:
                state = await self._step(state)
        return state

    async def abort(self, *, keep_split: bool = False) -> RolloutState:
        """End the rollout, and put the split back as it was before; or leave it as it is."""
        state = await self._resumed(watch=not keep_split)
        if state is None:
            raise ConfigError(f"no rollout has begun in {self._folder}: nothing to abort")
        if state.phase is not Phase.RUNNING:
            raise ConfigError(f"the rollout in {self._folder} is over: {state.phase}")
        if keep_split:
            ended = msgspec.structs.replace(state, phase=Phase.ABORTED, pending=None)
            return self._saved(ended)
        pending = Pending(shares_bp=state.original_bp, phase=Phase.ABORTED)
        state = self._saved(msgspec.structs.replace(state, pending=pending))
        return await self._carry_out(state, pending)

    async def close(self) -> None:
        """End what the sources do, and connections."""
        await asyncio.gather(*(source.close() for source in self._sources), self._store.close())

    async def _begun(self, started_at: str) -> RolloutState:
        live = await self._store.read()
        state = RolloutState(
            digest=digest_of(self._config),
            original_bp=live,
            current_bp=live,
            started_at=started_at,
            pending=self._next_step(live, 0),
        )
        return self._saved(state)

    async def _resumed(self, *, watch: bool = True) -> RolloutState | None:
        """The state of before, held against the split that is there now; None: there is none."""
        state = read_state(self._folder)
        if state is None:
            return None
        if state.digest != digest_of(self._config):
            raise ConfigError(
                f"{self._folder} has a rollout of another configuration: put the file back as it "
                "was, end that rollout with --abort, or name another --out"
            )
        if state.phase is not Phase.RUNNING or not watch:
            return state
        live = await self._store.read()
        if state.pending is None or not same_shares(live, state.pending.shares_bp):
            require_expected(live, state.current_bp)
        return state

    def _next_step(self, original: dict[str, int], index: int) -> Pending:
        names = self._config.baseline, self._config.candidate
        shares = shares_at(original, *names, self._plan.steps[index].share_bp)
        return Pending(shares_bp=shares, phase=Phase.RUNNING)

    async def _carry_out(self, state: RolloutState, pending: Pending) -> RolloutState:
        live = await self._store.read()
        if not same_shares(live, pending.shares_bp):
            await self._store.change(state.current_bp, pending.shares_bp)
        state = msgspec.structs.replace(
            state, current_bp=pending.shares_bp, phase=pending.phase, pending=None
        )
        if pending.phase is Phase.RUNNING:
            state = msgspec.structs.replace(
                state,
                standing=begin_step(self._plan, state.standing),
                total_s=state.total_s + state.elapsed_s,
                total_n=state.total_n + state.standing.n_candidate,
                elapsed_s=0.0,
            )
        state = self._saved(state)
        self._show(state, None, ())
        return state

    async def _step(self, state: RolloutState) -> RolloutState:
        """Look until there is a verdict; the state then has what follows from it as pending."""
        await self._clock.sleep(self._config.settle_s)
        for source in self._sources:
            await source.begin()
        tick_s = min(source.look_s for source in self._sources)
        last_s = watched_s = self._clock.now()
        while True:
            await self._clock.sleep(tick_s)
            look = together([await source.take() for source in self._sources])
            now_s = self._clock.now()
            standing = state.standing
            if len(look.pairs) or look.windows:
                standing = observe(self._plan, standing, look)
            elapsed_s = state.elapsed_s + now_s - last_s
            last_s = now_s
            state = msgspec.structs.replace(
                state, standing=standing, elapsed_s=elapsed_s, marks=self._marks()
            )
            state = state.with_point(self._point(state))
            is_over = all(source.is_exhausted for source in self._sources)
            ruling = rule(self._plan, standing, elapsed_s, exhausted=is_over)
            if ruling.verdict is not RolloutVerdict.CONTINUE:
                state = self._ruled(state, ruling)
            state = self._saved(state)
            self._show(state, ruling, self._troubles())
            if ruling.verdict is not RolloutVerdict.CONTINUE:
                return state
            if now_s - watched_s >= WATCH_S:
                await self._watch(state)
                watched_s = now_s

    def _ruled(self, state: RolloutState, ruling: Ruling) -> RolloutState:
        index = state.standing.step
        if ruling.verdict is not RolloutVerdict.PROMOTE:
            pending = Pending(shares_bp=state.original_bp, phase=_ENDS[ruling.verdict])
        elif index + 1 < len(self._plan.steps):
            pending = self._next_step(state.original_bp, index + 1)
        else:
            names = self._config.baseline, self._config.candidate
            shares = shares_at(state.original_bp, *names, 10_000)
            pending = Pending(shares_bp=shares, phase=Phase.PROMOTED)
        result = StepResult(
            step=index,
            shares_bp=state.current_bp,
            verdict=ruling.verdict,
            reason=ruling.reason,
            n_requests=state.standing.n_candidate,
            elapsed_s=state.elapsed_s,
            guards=guard_results(self._plan, state),
        )
        return msgspec.structs.replace(state, pending=pending, steps=(*state.steps, result))

    async def _watch(self, state: RolloutState) -> None:
        try:
            live = await self._store.read()
        except SplitUnreachableError:
            return  # the split is as it was; the next change has to reach it
        require_expected(live, state.current_bp)

    def _point(self, state: RolloutState) -> Point:
        standing = state.standing
        return Point(
            step=standing.step,
            n=state.total_n + standing.n_candidate,
            t_s=state.total_s + state.elapsed_s,
            against=log_against(self._plan, standing) / LOG_10,
            margins={name: each.best_for / LOG_10 for name, each in standing.guards.items()},
        )

    def _marks(self) -> dict[str, int]:
        return {str(i): source.mark for i, source in enumerate(self._sources)}

    def _troubles(self) -> list[str]:
        return [source.trouble for source in self._sources if source.trouble]

    def _saved(self, state: RolloutState) -> RolloutState:
        write_state(self._folder, state)
        return state


def guard_results(plan: RolloutPlan, state: RolloutState) -> tuple[GuardResult, ...]:
    """What each guard saw in the step that is on."""
    found = []
    for guard in plan.guards:
        each = state.standing.guards[guard.name]
        found.append(
            GuardResult(
                guard=guard.name,
                n=each.n,
                excess=each.shown,
                against=max(each.against) / LOG_10,
                margin=each.best_for / LOG_10,
                dependence=each.dependence(plan.dependence),
                threshold_s=state.standing.thresholds_s.get(guard.name),
            )
        )
    return tuple(found)
