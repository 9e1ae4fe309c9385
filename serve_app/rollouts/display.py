"""Progress in the terminal: one table that is drawn anew, or a line per step where none watches."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loadtests.report.terminal import new_table
from serve_app.config.rollout import RolloutConfig
from serve_app.rollout.judge import Ruling, log_against
from serve_app.rollouts.controller import LOG_10, guard_results
from serve_app.rollouts.state import RolloutState
from serve_app.rollouts.words import guard_row
from serve_app.splits.live_split import told


class Display:
    """`with Display(...) as display`: `display.show` is told at every look."""

    def __init__(self, config: RolloutConfig, console: Console) -> None:
        self._config = config
        self._plan = config.to_plan()
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: RolloutState, ruling: Ruling | None, troubles: Sequence[str]) -> None:
        """The state of this look."""
        if state.standing.step < 0:
            return
        if self._live is not None:
            self._live.update(self._table(state, ruling, troubles), refresh=True)
            return
        # in a log: what changed, not every look
        key = state.standing.step, ruling and ruling.verdict, tuple(troubles)
        if key != self._told:
            self._told = key
            for line in (self._line(state, ruling), *troubles):
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, state: RolloutState, ruling: Ruling | None) -> str:
        step = f"step {state.standing.step + 1} of {len(self._plan.steps)}"
        text = f"{step}: {told(state.current_bp)}"
        if ruling is None:
            return text
        return f"{text}; {ruling.verdict}: {ruling.reason}"

    def _table(self, state: RolloutState, ruling: Ruling | None, troubles: Sequence[str]) -> Group:
        table: Table = new_table(self._line(state, None))
        heads = (
            "guard",
            "units",
            "excess",
            "tolerated",
            "margin",
            "e against",
            "e for",
            "dep.",
            "s",
        )
        for i, name in enumerate(heads):
            table.add_column(name, justify="left" if i == 0 else "right")
        for guard, result in zip(self._plan.guards, guard_results(self._plan, state), strict=True):
            is_shown = result.margin >= -math.log10(self._plan.alpha)
            row = [escape(text) for text in guard_row(guard, result)]
            table.add_row(*row, style="green" if is_shown else None)
        against = log_against(self._plan, state.standing) / LOG_10
        n, elapsed_s = state.standing.n_candidate, state.elapsed_s
        lines = [
            f"{n:,} requests of the candidate in {elapsed_s:,.0f} s; against it 10^{against:+.2f}, "
            f"10^{-math.log10(self._plan.alpha):.2f} rolls back",
            *([ruling.reason] if ruling is not None else []),
            *troubles,
        ]
        return Group(table, *(Text(line) for line in lines))
